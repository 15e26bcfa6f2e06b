"""The chart of the comparison of worth: nats/token, and what students' backbones are worth, over tokens learnt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.results import ModelResult
from experiments.scales import HELD_OUT
from experiments.worth_measured import WorthRun
from experiments.worth_plan import FACTORED, GRU, POSITIONS, RECURRENT, SPLIT, TOKEN_LEVEL, WINDOWED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT = HELD_OUT[0]
# Okabe and Ito's colours; dashes tell groups apart without them, markers everything.
_LOOKS = {
    RECURRENT: ("#0072B2", "-"),
    POSITIONS: ("#56B4E9", (0, (5, 1))),
    SPLIT: ("#CC79A7", "-"),
    GRU: ("#D55E00", "--"),
    WINDOWED: ("#009E73", "-."),
    TOKEN_LEVEL: ("#000000", ":"),
    FACTORED: ("#777777", (0, (4, 1, 1, 1))),
}
_OTHERS = ("#8C6D1F", (0, (6, 2)))
_MARKERS = "sD^ov*PX<>hd"
_NGRAM = "ngram_cache_x"


@dataclass(frozen=True)
class Series:
    """One line, or the band between the best and the worst of several sizes.

    Attributes:
        label: in the legend.
        group: of the architectures.
        marker: of its points, no other series has it.
        points: values at each number of tokens.
    """

    label: str
    group: str
    marker: str
    points: dict[int, list[float]]


def draw_worth(runs: Sequence[WorthRun], results: Sequence[ModelResult], path: Path, note: str) -> None:
    """Writes both panels as PNG.

    Args:
        runs: all architectures at all budgets.
        results: those of n-grams among them are drawn too.
        path: of the PNG.
        note: a line below.
    """
    figure = worth_figure(runs, results, note)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def worth_figure(runs: Sequence[WorthRun], results: Sequence[ModelResult], note: str) -> "Figure":
    """The figure that :func:`draw_worth` writes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    nats, worth = figure.subplots(1, 2)
    for series in series_of(runs, lambda run: run.nats(_TEXT)):
        _draw(nats, series)
    counted = sorted((r.tokens, r.value) for r in results if _is_ngram(r))
    if counted:
        x, y = zip(*counted, strict=True)
        nats.plot(x, y, color="#E69F00", linestyle=(0, (1, 3)), marker="+", label="5-grams and a cache")
    for series in series_of(runs, _backbone_worth):
        _draw(worth, series)
    for axes, label in (
        (nats, "held-out nats/token (lower is better)"),
        (worth, "nats/token lost with the backbone's state at its mean"),
    ):
        _finish(axes, label, sorted({run.measured.model.tokens for run in runs}))
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def series_of(runs: Sequence[WorthRun], value_of: Callable[[WorthRun], float | None]) -> list[Series]:
    """What is drawn of a figure: a line for each architecture, but all sizes of a token-level group as one band."""
    found: dict[str, Series] = {}
    for run in runs:
        is_band = run.measured.model.kind == "token-level"
        label = f"{run.group}, all sizes" if is_band else run.architecture
        # By what there is, not by what has the figure: a marker means the same in all panels.
        series = found.setdefault(label, Series(label, run.group, _MARKERS[len(found) % len(_MARKERS)], {}))
        if (value := value_of(run)) is not None:
            series.points.setdefault(run.measured.model.tokens, []).append(value)
    return [series for series in found.values() if series.points]


def _is_ngram(result: ModelResult) -> bool:
    return result.id.startswith(_NGRAM) and result.id.removeprefix(_NGRAM).isdigit()


def _backbone_worth(run: WorthRun) -> float | None:
    """Of students: a token-level model has little besides its backbone, which would be another scale."""
    worth = run.figure("worth_backbone", _TEXT)
    return None if worth is None or run.measured.model.kind == "token-level" else worth.value


def _draw(axes: "Axes", series: Series) -> None:
    colour, dashes = _LOOKS.get(series.group, _OTHERS)
    x = sorted(series.points)
    best, worst = ([pick(series.points[tokens]) for tokens in x] for pick in (min, max))
    axes.plot(x, best, color=colour, linestyle=dashes, marker=series.marker, markersize=6, label=series.label)
    if worst != best:
        axes.plot(x, worst, color=colour, linestyle=dashes, marker=series.marker, markersize=3)
        axes.fill_between(x, best, worst, color=colour, alpha=0.12, linewidth=0)


def _finish(axes: "Axes", label: str, ticks: Sequence[int]) -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(EngFormatter(sep="", places=1))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens learnt")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
