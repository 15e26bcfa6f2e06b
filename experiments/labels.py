"""Texts in a chart stand where they cover the least."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation

# Around a point: offsets of a label's middle from it, in points (1/72 inch).
AROUND = ((0, 12), (0, -13), (28, 0), (-28, 0), (26, 10), (26, -10), (-26, 10), (-26, -10))
# What a marker counts beside a pixel of a line.
_MARKER = 20


@dataclass(frozen=True)
class Label:
    """A text and where it may stand.

    Attributes:
        text: it, with an offset in points from what it names.
        places: offsets; of equals the first is taken.
    """

    text: "Annotation"
    places: Sequence[tuple[float, float]]


def place_labels(figure: "Figure", labels: Mapping["Axes", Sequence[Label]]) -> None:
    """Moves every label to the place where it covers the fewest texts, then the fewest points and lines.

    In the order given: a label gives way to those before it, to the legend and to the axes' edge.

    Args:
        figure: with everything drawn and its limits final; its layout is settled here.
        labels: by the axes that they are in.
    """
    for label in itertools.chain.from_iterable(labels.values()):
        # Else the layout would change with its place.
        label.text.set_in_layout(False)
    figure.draw_without_rendering()
    for axes, of in labels.items():
        _place(axes, of, figure.dpi)


def _place(axes: "Axes", labels: Sequence[Label], dpi: float) -> None:
    ink = np.concatenate([_ink(line, dpi) for line in axes.lines])
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    for label in labels:
        costs = []
        for place in label.places:
            label.text.set_position(place)
            box = label.text.get_window_extent()
            texts = sum(box.overlaps(other) for other in taken)
            outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
            covered = ((ink >= box.min) & (ink <= box.max)).all(axis=1).sum()
            costs.append((texts + outside, int(covered)))
        label.text.set_position(label.places[costs.index(min(costs))])
        taken.append(label.text.get_window_extent())


def _ink(line: "Line2D", dpi: float) -> npt.NDArray[Any]:
    """Points in pixels, [points, 2], along a line and, repeated, at the middle and the edges of its markers."""
    corners = line.get_transform().transform(np.asarray(line.get_xydata()))
    radius = line.get_markersize() / 2 * dpi / 72
    edges = radius * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    markers = np.repeat((corners[:, None] + edges).reshape(-1, 2), _MARKER, axis=0)
    if line.get_linestyle() == "None" or len(corners) < 2:
        return markers
    between = [np.linspace(start, end, 400) for start, end in itertools.pairwise(corners)]
    return np.concatenate([*between, *([] if line.get_marker() == "None" else [markers])])
