"""Published results are drawn anew from their JSON, and the chart can be read."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from benchmarks.drafter.report import DrafterBenchResults
from benchmarks.gateway.__main__ import GatewayBenchResults
from benchmarks.inference.report import InferenceBenchResults
from benchmarks.long_context.report import LongContextResults
from benchmarks.trainer.__main__ import TrainerBenchResults
from experiments.chart import ChartControl, quality_and_speed
from experiments.labels import Label, place_labels
from experiments.measured import Measured, model_of
from experiments.plan import Model, Size, denoising_autoencoder
from experiments.published import ControlResults, redraw
from experiments.results import ModelResults
from experiments.speed import Speed
from latentforge.core.results import ResultsFile
from latentforge.trainer.results import Evaluation

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PUBLISHED = RESULTS / "students"
WORTH = ("cut", "split", "gru", "before")


def test_a_model_is_read_as_it_was_written() -> None:
    autoencoder = denoising_autoencoder("demo", 8, text_tokens=10)
    model = Model("pareto", "student", "demo", Size(2, 128), 10, 8, changes={"a": 1}, autoencoder=autoencoder)
    timed = Measured(model, {"stdlib": {}, "packages": {}}, Speed((1.0, 2.0), (3.0,), 4.0, 5), 6.0)
    untimed = Measured(Model("pareto", "token-level", "large", Size(1, 64), 10, seed=2), {"stdlib": {}})
    for measured in (timed, untimed):
        assert model_of(json.loads(json.dumps(measured.record()))) == measured


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_published_file_is_of_this_version(path: Path) -> None:
    kinds: dict[str, type[ResultsFile]] = {
        "gateway": GatewayBenchResults,
        "gateway-clients": GatewayBenchResults,
        "inference": InferenceBenchResults,
        "trainer": TrainerBenchResults,
        "drafter": DrafterBenchResults,
        "students-controls": ControlResults,
        "induction-shipped-before": Evaluation,
        "induction-shipped-after": Evaluation,
        "long-context": LongContextResults,
        "choice-stdlib-drafted": DrafterBenchResults,
        **{f"worth-{model}{text}": Evaluation for model in WORTH for text in ("", "-packages")},
    }
    kind = kinds.get(path.parent.name) or kinds.get(f"{path.parent.name}-{path.stem}") or ModelResults
    assert kind.read(path).name


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_published_command_can_be_given_elsewhere(path: Path) -> None:
    """No folder of the machine that it ran on stands in it."""
    words = ResultsFile.read(path).command.replace("=", " ").split()
    assert [word for word in words if word.startswith(("/", "~"))] == []


@pytest.mark.slow
def test_the_published_charts_are_drawn_from_what_is_published(tmp_path: Path) -> None:
    for name in ("results.json", "controls.json"):
        shutil.copy(PUBLISHED / name, tmp_path)
    charts = redraw(tmp_path)
    assert [chart.name for chart in charts] == ["quality-speed.png", "panels.png"]
    for chart in charts:
        drawn, published = (imread(path) for path in (chart, PUBLISHED / chart.name))
        assert drawn.shape == published.shape
        # Processors round the edges of lines differently.
        assert np.mean(np.abs(drawn - published).max(-1) > 0.1) < 0.001, chart.name


@pytest.mark.parametrize("vocabulary", ["demo", "large"])
def test_no_text_of_the_published_chart_covers_another_or_a_point(vocabulary: str) -> None:
    models = [model_of(m) for m in ModelResults.read(PUBLISHED / "results.json").models]
    # At 32,768 ids the students' points lie too close to each other for labels; the chart labels the others.
    shown = [m for m in models if m.model.vocabulary == vocabulary and (vocabulary == "demo" or m.model.k == 1)]
    figure = quality_and_speed(
        shown, [ChartControl("demo", "control", 3.481), ChartControl("large", "control", 5.117)], "note"
    )
    (axes,) = figure.axes
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [text.get_window_extent() for text in texts]
    legend = axes.get_legend()
    assert legend is not None
    assert len(boxes) > 5
    for (a, one), (b, other) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not one.overlaps(other), f"{a.get_text()} and {b.get_text()}"
    for text, box in zip(texts, boxes, strict=True):
        assert not box.overlaps(legend.get_window_extent()), text.get_text()
        for x, y in _points(figure):
            assert not box.contains(x, y), text.get_text()


def _points(figure: Figure) -> Iterator[tuple[float, float]]:
    """The models' points in pixels."""
    (axes,) = figure.axes
    for line in axes.lines:
        if line.get_marker() != "None":
            yield from axes.transData.transform(np.asarray(line.get_xydata()))


def test_a_label_gives_way_to_points_and_to_labels_before_it() -> None:
    figure = Figure(figsize=(4, 4))
    axes = figure.add_subplot()
    axes.plot([0, 1, 2], [1, 1, 1], marker="o")
    axes.set_ylim(0, 2)
    places = ((0, 0), (0, 15), (0, -15))
    labels = [
        Label(
            axes.annotate("label", (1, 1), xytext=(0, 0), textcoords="offset points", ha="center", va="center"), places
        )
        for _ in range(2)
    ]
    place_labels(figure, {axes: labels})
    assert [label.text.get_position() for label in labels] == [(0, 15), (0, -15)]
