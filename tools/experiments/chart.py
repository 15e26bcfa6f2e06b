"""The Pareto chart: quality against speed and against training, latent students beside token-level ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tools.experiments.figures import Measured

_COLOURS = {1: "black", 2: "tab:green", 4: "tab:orange", 8: "tab:blue"}
_NAMES = {"demo": "vocabulary 4,096", "large": "vocabulary 32,768"}

Axis = tuple[str, Callable[[Measured], float | None]]


def _one(m: Measured) -> float | None:
    return m.speed.one_request if m.speed else None


def _many(m: Measured) -> float | None:
    return m.speed.many_at_once if m.speed else None


def _flops(m: Measured) -> float | None:
    return m.speed.training_flops * m.model.tokens if m.speed else None


def _written(m: Measured) -> float | None:
    return m.value("gen_t07_teacher_nats")


def _nats(m: Measured) -> float | None:
    return m.nats


_PANELS: tuple[tuple[Axis, Axis], ...] = (
    (("decode tokens/s, one request", _one), ("held-out nats/token", _nats)),
    (("decode tokens/s, 16 at once", _many), ("held-out nats/token", _nats)),
    (("decode tokens/s, one request", _one), ("teacher's nats/token of what it writes, T=0.7", _written)),
    (("training operations", _flops), ("held-out nats/token", _nats)),
)


def draw(measured: Sequence[Measured], path: Path, note: str) -> None:
    """Writes the chart as PNG: a row per vocabulary; lower and further right is better in all but the last column."""
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
            for k in _COLOURS:
                points = [
                    (x, y, str(m.model.size))
                    for m in measured
                    if m.model.vocabulary == vocabulary and m.model.k == k and m.model.seed == 0
                    if (x := x_of(m)) is not None and (y := y_of(m)) is not None
                ]
                if not points:
                    continue
                points.sort()
                label = "token-level" if k == 1 else f"latent, K={k}"
                axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=_COLOURS[k], label=label)
                for x, y, size in points:
                    axes.annotate(size, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
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
