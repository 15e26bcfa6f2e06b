"""Figures of two sides that are taken in turns, and what they come to."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from latentforge.core.results import Result


class Report(Protocol):
    """Is told what is done."""

    def begin(self, what: str) -> None:
        """Something that gives no figure by itself begins."""

    def figure(self, what: str) -> None:
        """One figure is there."""


@dataclass(kw_only=True)
class Benchmark:
    """One run of a benchmark: takes figures and makes results of them.

    Attributes:
        repeats: figures of each side, of which the median counts.
        report: is told of the progress.
        measured: every figure by the id of its result and its side.
        notes: about what was chosen or could not be measured.
    """

    repeats: int
    report: Report
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(
        self,
        id: str,  # noqa: A002 - the format names it so
        ours: Callable[[], float],
        baseline: Callable[[], float],
        *,
        name: str,
        unit: str = "tokens/s",
        are_warm: bool = False,
    ) -> Result:
        """Measures both in turns: medians, their ratio, and the least and greatest ratio of two taken together."""

        def tell(side: str, figure: float) -> None:
            self._tell(id, side, figure, unit)

        own, theirs = alternated(ours, baseline, self.repeats, tell, are_warm=are_warm)
        return self.compared(id, own, theirs, name=name, unit=unit)

    def compared(
        self,
        id: str,  # noqa: A002
        ours: Sequence[float],
        baseline: Sequence[float],
        *,
        name: str,
        unit: str = "tokens/s",
    ) -> Result:
        """Figures that were taken: of the sides at one place together, where there are as many."""
        self.measured.setdefault(id, {}).update(ours=list(ours), baseline=list(baseline))
        value, baseline_value = statistics.median(ours), statistics.median(baseline)
        pairs = list(zip(ours, baseline, strict=False))
        ratios = [a / b for a, b in pairs] if len(ours) == len(baseline) else [a / baseline_value for a in ours]
        low, high = min(ratios), max(ratios)
        return Result.compared(id, value, unit, baseline=name, baseline_value=baseline_value, low=low, high=high)

    def repeated(self, id: str, measure: Callable[[], float], *, unit: str) -> Result:  # noqa: A002
        """Measures a value that stands alone: its median, and the least and the greatest."""
        values = []
        for _ in range(self.repeats):
            values.append(measure())
            self._tell(id, "value", values[-1], unit)
        return self.alone(id, values, unit=unit)

    def alone(self, id: str, values: Sequence[float], *, unit: str) -> Result:  # noqa: A002
        """Values that were taken."""
        self.measured.setdefault(id, {})["values"] = list(values)
        return Result(id=id, value=statistics.median(values), unit=unit, low=min(values), high=max(values))

    def _tell(self, id: str, side: str, figure: float, unit: str) -> None:  # noqa: A002
        self.report.figure(f"{id}, {side}: {figure:,.4g} {unit}")


def alternated(
    ours: Callable[[], float],
    baseline: Callable[[], float],
    repeats: int,
    on_figure: Callable[[str, float], None],
    *,
    are_warm: bool = False,
) -> tuple[list[float], list[float]]:
    """Both sides again and again, each first in every second repeat.

    Args:
        ours, baseline: measure once.
        repeats: figures of each.
        on_figure: told whose it is, and every figure.
        are_warm: both have been measured before; else each is measured once more, and that does not count.
    """
    if not are_warm:
        ours()
        baseline()
    found = in_turns({"ours": ours, "baseline": baseline}, repeats, on_figure)
    return found["ours"], found["baseline"]


def in_turns(
    sides: Mapping[str, Callable[[], float]], repeats: int, on_figure: Callable[[str, float], None]
) -> dict[str, list[float]]:
    """All sides again and again, in their order and in every second repeat the other way round; gives their figures."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        names = list(sides)
        for name in names if repeat % 2 == 0 else reversed(names):
            figure = sides[name]()
            found[name].append(figure)
            on_figure(name, figure)
    return found
