"""Results that are published: read back from their JSON, and drawn from it anew."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.chart import Control, draw, draw_panels
from experiments.figures import Measured
from experiments.plan import AutoencoderPlan, Model, Size
from experiments.speed import Speed

RESULTS, CONTROLS = "results.json", "controls.json"
CHART, PANELS = "quality-speed.png", "panels.png"


def redraw(folder: Path) -> list[Path]:
    """Draws the charts of a published folder from its results, with its controls if it has any.

    Args:
        folder: with ``results.json`` of ``pareto``, and perhaps ``controls.json``.

    Returns:
        The charts, in that folder.
    """
    record = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    controls = _controls(folder / CONTROLS)
    measured = [model_of(model) for model in record["models"]]
    return draw_charts(measured, controls, folder / CHART, folder / PANELS, record["device"], record["date"])


def draw_charts(
    measured: Sequence[Measured], controls: Sequence[Control], chart: Path, panels: Path, device: str, date: str
) -> list[Path]:
    """Draws both charts of the same models; the date is ISO's."""
    note = f"{device}, one thread, {date[:10]}. Hollow: further seeds."
    if controls:
        note += "\nDashed: controls that were trained alike; their speeds do not compare with the axis."
    draw(measured, controls, chart, note)
    draw_panels(measured, controls, panels, note)
    return [chart, panels]


def model_of(record: Mapping[str, Any]) -> Measured:
    """What :meth:`Measured.record` wrote of a model."""
    layers, width = record["size"].split("x")
    speed, autoencoder = record["speed"], record["autoencoder"]
    about = ("group", "kind", "vocabulary", "tokens", "k", "objective", "seed", "changes", "induction", "backbone_of")
    model = Model(
        **{name: record[name] for name in about},
        size=Size(int(layers), int(width)),
        autoencoder=autoencoder and AutoencoderPlan(**autoencoder),
    )
    timed = speed and Speed(**speed | {name: tuple(speed[name]) for name in ("one", "many")})
    return Measured(model, record["evaluations"], timed, record["autoencoder_flops"])


def _controls(path: Path) -> list[Control]:
    """The controls that a chart shows: those that have a label."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [Control(c["vocabulary"], c["label"], c["value"]) for c in found if "label" in c]
