"""Results that are published: read back from their JSON, and drawn from it anew."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from experiments.chart import ChartControl, draw, draw_panels
from experiments.measured import Measured, model_of
from experiments.plan import Vocabulary
from experiments.results import ModelResult, ModelResults
from experiments.worth_chart import draw_worth
from experiments.worth_measured import WorthRun
from latentforge.core.results import Result, ResultsFile, cpu_description

RESULTS, CONTROLS = "results.json", "controls.json"
CHART, PANELS = "quality-speed.png", "panels.png"
# The name of the comparison's results, and its chart.
WORTH, WORTH_CHART = "worth", "worth.png"


class ControlResult(Result):
    """A control's held-out nats/token.

    Attributes:
        vocabulary: whose tokens it writes.
        name: what it is.
        label: in the chart; None leaves it out there.
        tokens: that it learnt.
        packages: nats/token of two packages that nothing else here was trained, tuned or measured on.
        relative_speed: beside the first of the file.
    """

    vocabulary: Vocabulary
    name: str
    label: str | None = None
    tokens: int | None = None
    packages: tuple[float, ...] | None = None
    relative_speed: float | None = None


class ControlResults(ResultsFile):
    """``controls.json``; ``note`` is what the chart says of them."""

    note: str
    results: tuple[ControlResult, ...]


def redraw(folder: Path) -> list[Path]:
    """Draws the charts of a published folder from its results, with its controls if it has any.

    Args:
        folder: with ``results.json`` of ``worth``, or of ``pareto`` and perhaps ``controls.json``.

    Returns:
        The charts, in that folder.
    """
    record = ModelResults.read(folder / RESULTS)
    if record.name == WORTH:
        runs = [WorthRun.of(model) for model in record.models]
        draw_worth(runs, record.results, folder / WORTH_CHART, _made_on(record.device, record.date))
        return [folder / WORTH_CHART]
    controls, note = _controls(folder / CONTROLS)
    measured = [model_of(model) for model in record.models]
    note = f"{_about(record.device, record.date)}\n{note}"
    return _draw(measured, controls, folder / CHART, folder / PANELS, note.strip())


def draw_measured(measured: Sequence[Measured], chart: Path, panels: Path) -> list[Path]:
    """Draws the charts of what was measured here and now."""
    return _draw(measured, [], chart, panels, _about(cpu_description(), date.today().isoformat()))


def draw_runs(runs: Sequence[WorthRun], results: Sequence[ModelResult], chart: Path) -> None:
    """Draws the chart of a comparison of worth that was made here and now."""
    draw_worth(runs, results, chart, _made_on(cpu_description(), date.today().isoformat()))


def _draw(
    measured: Sequence[Measured], controls: Sequence[ChartControl], chart: Path, panels: Path, note: str
) -> list[Path]:
    draw(measured, controls, chart, note)
    draw_panels(measured, controls, panels, note)
    return [chart, panels]


def _about(device: str, day: str) -> str:
    return f"{_made_on(device, day)}. Hollow: further seeds."


def _made_on(device: str, day: str) -> str:
    return f"{device}, one thread, {day[:10]}"


def _controls(path: Path) -> tuple[list[ChartControl], str]:
    """The controls that a chart shows, those that have a label, and what it says of them."""
    if not path.exists():
        return [], ""
    record = ControlResults.read(path)
    shown = [(c.vocabulary, c.label, c.value) for c in record.results]
    return [
        ChartControl(v, label, nats) for v, label, nats in shown if label is not None and nats is not None
    ], record.note
