"""Curves of runs as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import ProgressPoint, read_progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("student", "token-level", "autoencoder")
# Okabe and Ito's, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Of a figure over the steps: more points than a picture has pixels show nothing more.
_MOST_POINTS = 2000
_INCHES, _DPI = (20, 8), 100
# Title, unit, the figure of steps and that of validations.
_PANELS: tuple[tuple[str, str, str | None, str | None], ...] = (
    ("loss", "weighted sum", "loss", None),
    ("CE", "nats/token", "ce", "ce"),
    ("KD", "nats/token", "kd", "kd"),
    ("acceptance", "share of drafted tokens", None, "acceptance"),
    ("what the backbone is worth", "nats/token", None, "worth_backbone"),
    ("what the induction heads are worth", "nats/token", None, "worth_copy"),
    ("throughput", "tokens/s", "tok_per_s", None),
    ("wait for the teacher", "seconds, summed up", "teacher_wait_seconds", None),
)


def plot_runs(folders: Sequence[Path], out: Path, stage: str | None = None) -> str:
    """Draws loss, CE, KD, acceptance, what backbone and induction heads are worth, throughput and the wait for the
    teacher, runs over one another.

    A thin line is of the steps, a line with dots of the validations.

    Args:
        folders: of the runs, each with a ``metrics.jsonl``.
        out: the PNG.
        stage: which stage; None takes the first of :data:`STAGES` that the first run has.

    Returns:
        The stage that was drawn.

    Raises:
        TrainerError: matplotlib is not installed, or a run has no figures of the stage.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainerError(
            "trainer plot needs matplotlib, which is not installed: pip install 'latentforge-trainer[plot]'"
        ) from None
    history = {folder: read_progress(folder) for folder in folders}
    if stage is None:
        found = {point.stage for point in history[folders[0]]}
        stage = next((s for s in STAGES if s in found), STAGES[0])
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    figure.suptitle(stage)
    panels = list(figure.subplots(2, 4).flat)
    for axes, (title, unit, _, _) in zip(panels, _PANELS, strict=True):
        axes.set(title=title, ylabel=unit, xlabel="step")
        axes.grid(alpha=0.3)
    for i, (folder, points) in enumerate(history.items()):
        steps, validations = (_points(points, stage, kind) for kind in ("train", "held_out"))
        if not steps and not validations:
            raise TrainerError(f"run {folder.name} has no figures of the stage {stage}; choose another with --stage")
        colour = COLOURS[i % len(COLOURS)]
        for axes, (title, _, of_steps, of_validations) in zip(panels, _PANELS, strict=True):
            _draw(axes, _curve(steps, of_steps, summed="wait" in title), colour, "-", folder.name)
            _draw(axes, _curve(validations, of_validations), colour, ".-", f"{folder.name}, held-out")
    for axes in panels:
        if axes.get_lines():
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", metadata={"Title": f"{stage}: {', '.join(f.name for f in folders)}"})
    return stage


def _points(points: Sequence[ProgressPoint], stage: str, kind: str) -> list[ProgressPoint]:
    """Of each step the last time that it was done, in their order."""
    by_step = {p.step: p for p in points if p.stage == stage and p.kind == kind}
    return [by_step[step] for step in sorted(by_step)]


def _curve(points: Sequence[ProgressPoint], name: str | None, *, summed: bool = False) -> list[tuple[int, float]]:
    """(step, value) of one figure, thinned."""
    found = [(p.step, p.figures[name]) for p in points if name in p.figures] if name else []
    if summed:
        total = 0.0
        found = [(step, total := total + value) for step, value in found]
    return found[:: len(found) // _MOST_POINTS + 1]


def _draw(axes: "Axes", curve: list[tuple[int, float]], colour: str, style: str, label: str) -> None:
    if curve:
        thin = style == "-" and axes.get_title() in ("CE", "KD")
        axes.plot(*zip(*curve, strict=True), style, color=colour, label=label, alpha=0.4 if thin else 1, linewidth=1.5)
