"""A curve in bounded memory: every point at first, later fewer of them, evenly spread, and always the newest."""

import math
from collections.abc import Mapping

Point = dict[str, float]
_MOST_POINTS = 400


class BoundedCurve:
    """Points of a run by step.

    Args:
        limit: points that are kept besides the newest; of one more, every second is forgotten.
    """

    def __init__(self, limit: int = _MOST_POINTS) -> None:
        self._limit = limit
        self._distance = 1
        self._seen = 0
        self._kept: list[Point] = []
        self._newest: Point | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point; figures that are not finite are left out, since JSON has no word for them."""
        point = {"step": step} | {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._newest = point
        if self._seen % self._distance == 0:
            self._kept.append(point)
        self._seen += 1
        if len(self._kept) > self._limit:
            self._kept = self._kept[::2]
            self._distance *= 2

    @property
    def points(self) -> list[Point]:
        """A list of its own, oldest first; each point has ``step`` and its figures by name."""
        is_kept = self._newest is None or (self._kept and self._kept[-1] is self._newest)
        return list(self._kept) if is_kept else [*self._kept, self._newest]  # type: ignore[list-item]
