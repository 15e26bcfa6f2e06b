"""The charts of the experiments: quality against speed and against training, students beside token-level models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.labels import AROUND, Label, place_labels
from experiments.measured import Measured
from experiments.plan import Vocabulary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Value = Callable[[Measured], float | None]
Axis = tuple[str, Value]
_IDS: dict[Vocabulary, int] = {"demo": 4096, "large": 32768}
_CONTROL = "#555555"


@dataclass(frozen=True)
class ChartControl:
    """A model that tests what a chart claims, without a speed that compares with the chart's: a horizontal line.

    Attributes:
        vocabulary: whose tokens it writes.
        name: what it is.
        nats: held-out nats/token.
    """

    vocabulary: Vocabulary
    name: str
    nats: float


@dataclass(frozen=True)
class Style:
    """How the models of one K look. The colours are Okabe and Ito's, which colour-blind readers tell apart.

    Attributes:
        label: in the legend.
        colour, marker: of its points.
    """

    label: str
    colour: str
    marker: str


_STYLES = {
    1: Style("token-level", "#000000", "o"),
    2: Style("student, K = 2", "#D55E00", "^"),
    4: Style("student, K = 4", "#009E73", "D"),
    8: Style("student, K = 8", "#0072B2", "s"),
}


def _one(m: Measured) -> float | None:
    return m.speed.one_request if m.speed else None


def _many(m: Measured) -> float | None:
    return m.speed.many_at_once if m.speed else None


def _flops(m: Measured) -> float | None:
    return m.training_flops


def _samples(m: Measured) -> float | None:
    return m.value("gen_t07_teacher_nats")


def _nats(m: Measured) -> float | None:
    return m.nats


_NATS: Axis = ("held-out nats/token (lower is better)", _nats)
_SPEED: Axis = ("decoded tokens/s, one request (higher is better)", _one)
_PANELS: tuple[tuple[Axis, Axis], ...] = (
    (_SPEED, _NATS),
    (("decoded tokens/s, 16 requests at once (higher is better)", _many), _NATS),
    (("training FLOP, the autoencoder's included (lower is better)", _flops), _NATS),
    (_SPEED, ("teacher's NLL of samples, T = 0.7, nats/token", _samples)),
)


def draw(measured: Sequence[Measured], controls: Sequence[ChartControl], path: Path, note: str) -> None:
    """Writes one panel as PNG, legible at 700 pixels: quality against speed at the first vocabulary there is.

    Args:
        measured: models; hollow points are further seeds of a model, whose speed is the first's.
        controls: horizontal lines.
        path: of the PNG.
        note: a line below the panel.
    """
    figure = quality_and_speed(measured, controls, note)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def quality_and_speed(measured: Sequence[Measured], controls: Sequence[ChartControl], note: str) -> "Figure":
    """The figure that :func:`draw` writes."""
    from matplotlib.figure import Figure

    vocabulary = next(v for v in _IDS if any(m.model.vocabulary == v and m.speed for m in measured))
    figure = Figure(figsize=(7, 4.9), layout="constrained")
    axes = figure.add_subplot()
    labels = _draw_panel(axes, measured, controls, vocabulary, _SPEED, _NATS, sizes=True)
    figure.supxlabel(note, fontsize=8, color=_CONTROL)
    place_labels(figure, {axes: labels})
    return figure


def draw_panels(measured: Sequence[Measured], controls: Sequence[ChartControl], path: Path, note: str) -> None:
    """Writes every comparison as PNG: a column per vocabulary, a row per pair of axes.

    Only token-level models bear their size: students of all sizes lie too close to each other.

    Args:
        measured, controls, path, note: as of :func:`draw`.
    """
    from matplotlib.figure import Figure

    vocabularies = [v for v in _IDS if any(m.model.vocabulary == v and m.speed for m in measured)]
    figure = Figure(figsize=(6 * len(vocabularies), 4 * len(_PANELS)), layout="constrained")
    grid = figure.subplots(len(_PANELS), len(vocabularies), squeeze=False)
    labels = {
        axes: _draw_panel(axes, measured, controls, vocabulary, x, y, sizes=False)
        for row, (x, y) in zip(grid, _PANELS, strict=True)
        for axes, vocabulary in zip(row, vocabularies, strict=True)
    }
    figure.supxlabel(note, fontsize=9, color=_CONTROL)
    place_labels(figure, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(
    axes: "Axes",
    measured: Sequence[Measured],
    controls: Sequence[ChartControl],
    vocabulary: Vocabulary,
    x: Axis,
    y: Axis,
    *,
    sizes: bool,
) -> list[Label]:
    """Draws one panel; the labels of its points are still to be placed."""
    here = [m for m in measured if m.model.vocabulary == vocabulary]
    labels = []
    for k, style in _STYLES.items():
        labels += draw_series(axes, [m for m in here if m.model.k == k], x[1], y[1], style, sizes=sizes or k == 1)
    axes.margins(x=0.15, y=0.12)
    if y is _NATS:
        labels += [_draw_control(axes, control) for control in controls if control.vocabulary == vocabulary]
    _scale(axes, flops=x[1] is _flops)
    axes.set_xlabel(x[0])
    axes.set_ylabel(y[0])
    axes.set_title(
        f"vocabulary {_IDS[vocabulary]:,}, {max(m.model.tokens for m in here):,} training tokens", fontsize=11
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    return labels


def _scale(axes: "Axes", *, flops: bool) -> None:
    """A logarithmic axis with plain figures; more of them where it is less than a decade long."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if high < 8 * low else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if flops else FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_series(
    axes: "Axes", models: Sequence[Measured], x_of: Value, y_of: Value, style: Style, *, sizes: bool
) -> list[Label]:
    """Draws the models of one K; where none has both values nothing, not even a label.

    Returns:
        The sizes, still to be placed.
    """
    points = [
        (x, y, m.model)
        for m in models
        if m.model.seed == 0 and (x := x_of(m)) is not None and (y := y_of(m)) is not None
    ]
    if not points:
        return []
    points.sort(key=lambda point: point[:2])
    look: dict[str, Any] = {"color": style.colour, "marker": style.marker}
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], label=style.label, markersize=6, **look)
    labels = []
    for x, y, model in points:
        further = [m for m in models if m.model.seed and m.model.size == model.size]
        heights = [height for m in further if (height := y_of(m)) is not None]
        axes.plot([x] * len(heights), heights, linestyle="", fillstyle="none", markersize=5, **look)
        if sizes:
            text = f"{model.size.layers} × {model.size.width}"
            place: dict[str, Any] = {"xytext": AROUND[0], "textcoords": "offset points", "ha": "center", "va": "center"}
            labels.append(Label(axes.annotate(text, (x, y), fontsize=9, color=style.colour, **place), AROUND))
    return labels


def _draw_control(axes: "Axes", control: ChartControl) -> Label:
    axes.axhline(control.nats, color=_CONTROL, linestyle="--", linewidth=1)
    name = axes.annotate(
        f"{control.name}: {control.nats:.3f}",
        (0, control.nats),
        xycoords=("axes fraction", "data"),
        xytext=(4, 7),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=_CONTROL,
    )
    return Label(name, tuple((x, y) for x in range(4, 200, 14) for y in (7, -7)))
