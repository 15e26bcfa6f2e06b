"""The comparison of worth: what the bars and the chart say of figures that are known."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.measured import Measured
from experiments.plan import Kind, Model, Size
from experiments.published import RESULTS, redraw
from experiments.report import worth_table
from experiments.results import ModelResult, ModelResults
from experiments.speed import Speed
from experiments.worth_chart import series_of, worth_figure
from experiments.worth_figures import worth_results
from experiments.worth_measured import WorthRun
from latentforge.core.results import Result

UNIT = 1000
TEXTS = ("stdlib", "packages")


def run(
    group: str, size: str, k: int, nats: Sequence[float], pace: float, budget: int = 4, worth: float | None = None
) -> WorthRun:
    """A run with nats/token of both texts."""
    layers, width = size.split("x")
    kind: Kind = "token-level" if k == 1 else "student"
    model = Model(f"{group}-x{budget}", kind, "demo", Size(int(layers), int(width)), budget * UNIT, k)
    evaluations = {}
    for factor, (text, value) in enumerate(zip(TEXTS, nats, strict=True), 1):
        results = [Result(id="nats_per_token", value=value, unit="nats/token", low=value - 0.5, high=value + 0.5)]
        if worth is not None:
            figures = {"value": factor * worth, "low": factor * worth - 0.25, "high": factor * worth + 0.25}
            results.append(Result(id="worth_backbone", unit="nats/token", **figures))
        evaluations[text] = {result.id: result for result in results}
    # The second round is the best one.
    measured = Measured(model, evaluations, Speed((pace / 2, pace, pace / 4), (7.0,), 1e6, 123_456))
    return WorthRun(measured, group, budget, 0.016, {"0.016": 3.5, "0.032": 3.75}, 60.0)


RUNS = [
    run("recurrent", "4x256", 8, (3.0, 4.0), 1000, worth=0.25),
    run("recurrent", "4x256", 4, (2.875, 3.875), 500, worth=0.5),
    # Faster than both students; as fast as K = 8; slower than all, and worse.
    run("gru", "0x128", 8, (3.125, 4.5), 2000),
    run("gru", "0x256", 8, (3.25, 4.125), 1000),
    run("gru", "0x384", 8, (3.5, 4.25), 400),
    # Beaten by both in both forms; by none, as its factored form is better; by K = 8 alone, which is faster.
    run("token-level", "2x128", 1, (3.5, 4.5), 300, worth=1.0),
    run("factored", "2x128", 1, (3.25, 4.5), 400, worth=1.5),
    run("token-level", "4x256", 1, (3.5, 4.5), 100, worth=2.0),
    run("factored", "4x256", 1, (2.5, 3.5), 150, worth=2.5),
    run("token-level", "1x64", 1, (3.75, 3.75), 600, worth=0.75),
    run("factored", "1x64", 1, (3.5, 3.75), 900, worth=0.5),
    run("recurrent", "4x256", 8, (3.5, 4.75), 1000, budget=1, worth=-0.125),
    run("gru", "0x256", 8, (3.25, 4.75), 1000, budget=1),
]


def figure(name: str, runs: Sequence[WorthRun] = RUNS) -> ModelResult:
    (result,) = [result for result in worth_results(runs) if result.id == name]
    return result


def test_what_a_backbone_is_worth_is_what_its_mean_costs() -> None:
    for name, value in (
        ("backbone_nats", 0.25),
        ("backbone_nats_k4", 0.5),
        ("backbone_nats_packages", 0.5),
        ("backbone_nats_x1", -0.125),
    ):
        result = figure(name)
        assert (result.value, result.low, result.high) == (value, value - 0.25, value + 0.25), name
    assert figure("backbone_nats_x1").tokens == UNIT


def test_a_student_is_set_beside_the_best_gru_that_is_no_faster() -> None:
    result = figure("vs_gru")
    assert (result.value, result.baseline) == (0.25, "gru-256")
    assert (result.tokens_per_s, result.baseline_tokens_per_s) == (1000, 1000)
    assert (result.nats_per_token, result.baseline_nats_per_token) == (3.0, 3.25)
    # A slower student has other ones to beat.
    assert (figure("vs_gru_k4").value, figure("vs_gru_k4").baseline) == (0.625, "gru-384")
    assert (figure("vs_best_gru").value, figure("vs_best_gru").baseline) == (0.125, "gru-128")
    # On other text another one is the best, and one at another budget is none.
    assert (figure("vs_best_gru_packages").value, figure("vs_gru_packages").baseline) == (0.125, "gru-256")
    assert figure("vs_gru_x1").value == -0.25
    slow = run("recurrent", "4x256", 8, (3.0, 4.0), 100, worth=0.25)
    assert not [r for r in worth_results([slow, *RUNS[2:5]]) if r.id == "vs_gru"]


def test_a_token_level_size_is_beaten_in_all_its_forms_in_quality_and_speed_or_not_at_all() -> None:
    assert (figure("vs_token_level_k8").value, figure("vs_token_level_k8").beaten) == (2, ["2x128", "1x64"])
    assert (figure("vs_token_level_k4").value, figure("vs_token_level_k4").beaten) == (1, ["2x128"])
    assert figure("vs_token_level_k8_packages").beaten == ["2x128"]
    assert figure("vs_token_level_k8").unit == "of 3 sizes"
    # Nothing was trained that it could beat.
    assert not [r for r in worth_results(RUNS) if r.id.startswith("vs_token_level") and r.id.endswith("_x1")]


def test_another_architecture_has_figures_of_its_own() -> None:
    other = run("token-positions", "4x256", 8, (2.75, 3.75), 1500, worth=0.75)
    results = {result.id: result for result in worth_results([*RUNS, other])}
    assert results["backbone_nats_token_positions_k8"].value == 0.75
    assert results["vs_gru_token_positions_k8"].baseline == "gru-256"
    assert results["vs_token_level_token_positions_k8"].beaten == ["2x128", "1x64"]
    assert results["backbone_nats"].value == 0.25


def test_all_sizes_of_a_token_level_group_are_one_band() -> None:
    series = {s.label: s.points for s in series_of(RUNS, lambda run: run.nats("stdlib"))}
    assert series["recurrent-k8-4x256"] == {4 * UNIT: [3.0], UNIT: [3.5]}
    assert series["token-level, all sizes"] == {4 * UNIT: [3.5, 3.5, 3.75]}
    assert series["factored, all sizes"] == {4 * UNIT: [3.25, 2.5, 3.5]}
    assert len(series) == 7


def test_the_panels_show_nats_and_worth_over_tokens() -> None:
    counted = [
        ModelResult(id=f"ngram_cache_x{budget}{text}", value=value, unit="nats/token", tokens=budget * UNIT)
        for text, value in (("", 4.5), ("_packages", 9.0))
        for budget in (4, 1)
    ]
    nats, worth = worth_figure(RUNS, counted, "a note").axes
    drawn = [
        {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines} for axes in (nats, worth)
    ]
    assert drawn[0]["recurrent-k8-4x256"] == [[UNIT, 3.5], [4 * UNIT, 3.0]]
    assert drawn[0]["5-grams and a cache"] == [[UNIT, 4.5], [4 * UNIT, 4.5]]
    assert drawn[0]["factored, all sizes"] == [[4 * UNIT, 2.5]]
    assert [[4 * UNIT, 3.5]] in drawn[0].values()
    assert drawn[1]["recurrent-k8-4x256"] == [[UNIT, -0.125], [4 * UNIT, 0.25]]
    assert drawn[1].keys() == {"recurrent-k8-4x256", "recurrent-k4-4x256"}
    # Without colours too, no two lines look alike, and each looks the same in both panels.
    markers = [
        {str(line.get_label()): line.get_marker() for line in axes.lines if not str(line.get_label()).startswith("_")}
        for axes in (nats, worth)
    ]
    assert len(set(markers[0].values())) == len(markers[0]) == 8
    assert markers[1].items() <= markers[0].items()


def test_what_is_published_is_drawn_from_its_json_alone(tmp_path: Path) -> None:
    about = {"command": "worth", "device": "a machine", "seed": 0, "scale": "cpu"}
    results = tuple(worth_results(RUNS))
    written = ModelResults(name="worth", results=results, models=[r.record() for r in RUNS], **about).write(tmp_path)
    published = tmp_path / "published"
    published.mkdir()
    written.rename(published / RESULTS)
    (chart,) = redraw(published)
    assert chart.read_bytes()[:4] == b"\x89PNG"
    assert [WorthRun.of(json.loads(json.dumps(r.record()))) for r in RUNS] == RUNS


def test_the_table_has_intervals_and_what_a_run_took() -> None:
    console = Console(width=250)
    with console.capture() as shown:
        console.print(worth_table(RUNS[:1]))
    nats, worth = "3.000 [2.500, 3.500]", "0.250 [0.000, 0.500]"
    for text in ("recurrent-k8-4x256", "4,000", nats, worth, "123,456", "60", "1,000"):
        assert text in shown.get(), text
