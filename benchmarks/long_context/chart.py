"""The chart: tokens/s by context, a panel for each number of requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.long_context.cells import VLLM, LongContextFigures
from benchmarks.long_context.plan import MODELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, which colour-blind readers tell apart, and a marker.
_LOOKS = {
    "twin": ("#000000", "o"),
    "k4": ("#009E73", "D"),
    "k8": ("#0072B2", "s"),
    "k8_heads": ("#CC79A7", "v"),
    "k8_split": ("#D55E00", "P"),
    VLLM: ("#E69F00", "^"),
}
_KEYS = [*(model.key for model in MODELS), VLLM]


def draw(figures: Sequence[LongContextFigures], path: Path, note: str) -> None:
    """Writes the chart as PNG.

    Args:
        figures: of every model in every cell.
        path: of the PNG.
        note: a line below the panels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pace_by_context(figures, note).savefig(path, dpi=150)


def pace_by_context(figures: Sequence[LongContextFigures], note: str) -> "Figure":
    """The figure that :func:`draw` writes; dashed is what the device allows."""
    from matplotlib.figure import Figure

    requests = sorted({each.requests for each in figures})
    figure = Figure(figsize=(5 * len(requests), 4.6), layout="constrained")
    panels = figure.subplots(1, len(requests), squeeze=False, sharey=True)[0]
    for axes, num in zip(panels, requests, strict=True):
        _draw_panel(axes, [each for each in figures if each.requests == num])
        axes.set_title(f"{num} request{'s' if num > 1 else ''} at once", fontsize=11)
    panels[0].set_ylabel("tokens/s, all requests together")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
    figure.supxlabel(f"tokens of context; dashed: what the device allows\n{note}", fontsize=9)
    return figure


def _draw_panel(axes: "Axes", figures: Sequence[LongContextFigures]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    contexts = sorted({each.context for each in figures})
    for key in _KEYS:
        line = sorted((each for each in figures if each.model == key), key=lambda each: each.context)
        if not line:
            continue
        colour, marker = _LOOKS[key]
        x = [each.context for each in line]
        axes.plot(x, [each.pace for each in line], color=colour, marker=marker, label=line[0].name)
        costs = [each.cost.pace for each in line if each.cost is not None]
        if len(costs) == len(x):
            axes.plot(x, costs, color=colour, linestyle="--", linewidth=1, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
