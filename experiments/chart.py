"""The Pareto chart: quality against speed and against training, students beside token-level models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.figures import Measured

_COLOURS = {1: "black", 2: "tab:green", 4: "tab:orange", 8: "tab:blue"}
_NAMES = {"demo": "vocabulary 4,096", "large": "vocabulary 32,768"}

Value = Callable[[Measured], float | None]
Axis = tuple[str, Value]


def _one(m: Measured) -> float | None:
    return m.speed.one_request if m.speed else None


def _many(m: Measured) -> float | None:
    return m.speed.many_at_once if m.speed else None


def _flops(m: Measured) -> float | None:
    return m.training_flops


def _written(m: Measured) -> float | None:
    return m.value("gen_t07_teacher_nats")


def _nats(m: Measured) -> float | None:
    return m.nats


_PANELS: tuple[tuple[Axis, Axis], ...] = (
    (("decode tokens/s, one request", _one), ("held-out nats/token", _nats)),
    (("decode tokens/s, 16 at once", _many), ("held-out nats/token", _nats)),
    (("decode tokens/s, one request", _one), ("teacher's nats/token of what it writes, T=0.7", _written)),
    (("training operations, the autoencoder's too", _flops), ("held-out nats/token", _nats)),
)


def draw(measured: Sequence[Measured], path: Path, note: str) -> None:
    """Writes the chart as PNG: a row per vocabulary; lower and further right is better in all but the last column.

    Hollow points are further seeds of the model above or below them, whose speed and operations are the same.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    vocabularies = [v for v in _NAMES if any(m.model.vocabulary == v and m.speed for m in measured)]
    figure, grid = plt.subplots(
        len(vocabularies), len(_PANELS), figsize=(5 * len(_PANELS), 4.2 * len(vocabularies)), squeeze=False
    )
    for row, vocabulary in zip(grid, vocabularies, strict=True):
        for axes, ((x_name, x_of), (y_name, y_of)) in zip(row, _PANELS, strict=True):
            for k, colour in _COLOURS.items():
                of = [m for m in measured if m.model.vocabulary == vocabulary and m.model.k == k]
                draw_series(axes, of, x_of, y_of, colour)
            axes.margins(x=0.12, y=0.08)
            axes.set_xscale("log")
            # Powers of ten alone leave an axis of less than a decade without figures, and all of them overlap.
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(x_name)
            axes.set_ylabel(y_name)
            axes.set_title(_NAMES[vocabulary], fontsize=10)
            axes.grid(alpha=0.3, which="both")
            axes.legend(fontsize=8)
    figure.suptitle(note, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_series(axes: Any, models: Sequence[Measured], x_of: Value, y_of: Value, colour: str) -> None:
    """Draws the models of one K; where none has both values nothing, not even a label."""
    points = [
        (x, y, m.model)
        for m in models
        if m.model.seed == 0 and (x := x_of(m)) is not None and (y := y_of(m)) is not None
    ]
    if not points:
        return
    points.sort(key=lambda point: point[:2])
    label = "token-level" if points[0][2].k == 1 else f"student, K={points[0][2].k}"
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=colour, label=label)
    for x, y, model in points:
        text = str(model.size)
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour)
        further = [m for m in models if m.model.seed and m.model.size == model.size]
        heights = [height for m in further if (height := y_of(m)) is not None]
        axes.plot([x] * len(heights), heights, "o", color=colour, fillstyle="none", markersize=4)
