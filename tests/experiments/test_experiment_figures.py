"""Experiments: what the bars and the chart say of figures that are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.chart import Style, draw, draw_panels, draw_series
from experiments.comparisons import latent_models, of_groups
from experiments.figures import (
    latent_results,
    objective_results,
    pareto_results,
    speed_results,
    token_results,
)
from experiments.measured import Measured, read_evaluation
from experiments.plan import FAST, Model, Size, Vocabulary
from experiments.scales import SCALES, ScaleName
from experiments.speed import Speed
from latentforge.core.results import Result, ResultsFile

SIZE = Size(2, 128)
VOCABULARIES: tuple[Vocabulary, ...] = ("demo", "large")


def figures(**values: float) -> dict[str, Result]:
    return {name: Result(id=name, value=value, unit="nats/token") for name, value in values.items()}


def measured(
    k: int,
    nats: float,
    pace: float,
    size: Size = SIZE,
    seed: int = 0,
    words: Vocabulary = "demo",
    written: float = 2.0,
    group: str = "pareto",
) -> Measured:
    model = Model(group, "token-level" if k == 1 else "student", words, size, 1000, k, seed=seed)
    results = figures(nats_per_token=nats, gen_t07_teacher_nats=written)
    speed = Speed((0.9 * pace, pace, 1.1 * pace), (4 * pace,), 1e6, 10) if seed == 0 else None
    return Measured(model, {"stdlib": results, "packages": results}, speed)


def test_the_gap_is_the_mean_over_seeds_of_the_same_backbone() -> None:
    results = pareto_results(
        [
            *(measured(1, 4.0 + 0.1 * seed, 100, seed=seed) for seed in range(3)),
            *(measured(8, 4.3 + 0.2 * seed, 400, seed=seed) for seed in range(3)),
            measured(8, 9.0, 400, size=Size(4, 256)),
            measured(1, 3.0, 50, size=Size(4, 256)),
        ]
    )
    (gap,) = [result for result in results if result.id == "gap_k8"]
    assert gap.value == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert [gap.low, gap.high] == pytest.approx([0.3, 0.5])
    assert (gap.seeds, gap.size) == (3, "2x128")


def test_objectives_are_compared_seed_by_seed() -> None:
    def of(objective: str, seed: int, nats: float, kl: float) -> Measured:
        model = Model(objective, "student", "demo", SIZE, 1000, 8, objective, seed)
        return Measured(model, {"stdlib": figures(nats_per_token=nats, kl_to_teacher=kl)})

    def bound_of(objective: str, seed: int, nats: float) -> Measured:
        model = Model(objective, "student", "demo", SIZE, 1000, 8, objective, seed)
        return Measured(model, {"stdlib": figures(nats_per_token_bound_n128=nats)})

    results = objective_results(
        [
            *(of("regressed-latent", s, 6.0 + s, 3.0) for s in range(2)),
            *(of("chunk-ce", s, 5.0, 2.0 + s) for s in range(2)),
            *(of("chunk-kd", s, 4.5 - s, 1.5) for s in range(2)),
            *(bound_of("energy", s, 1.0) for s in range(2)),
        ]
    )
    values = {result.id: (result.value, result.low, result.high) for result in results}
    assert values == {
        "vs_seed_objective_equal_tokens": (2.5, 1.5, 3.5),
        "kd_bound": (1.0, 0.5, 1.5),
        "kd_kl": (1.0, 0.5, 1.5),
    }


def test_latents_are_compared_seed_by_seed_on_both_texts() -> None:
    nats = {
        "linear-rank32": 4.5,
        "autoencoder-rank32": 4.75,
        "longer": 4.0,
        "longer-denoising": 3.5,
        "longer-denoising-own-text": 3.75,
        "embeddings": 4.0,
    }

    def of(model: Model) -> Measured:
        value = nats.get(model.group, 1.0) + (model.seed if model.group == "longer" else 0.0) / 4
        texts = {"stdlib": value, "packages": 2 * value}
        return Measured(model, {text: figures(nats_per_token=nats) for text, nats in texts.items()})

    models = latent_models(SCALES[ScaleName.cpu])
    results = latent_results([of(model) for model in models])
    values = {result.id: (result.value, result.low, result.high, result.seeds) for result in results}
    assert values == {
        "longer_vs_linear": (0.25, 0.0, 0.5, 3),
        "longer_vs_linear_packages": (0.5, 0.0, 1.0, 3),
        "longer_vs_default": (0.5, 0.25, 0.75, 3),
        "longer_vs_default_packages": (1.0, 0.5, 1.5, 3),
        "denoising_vs_linear": (1.0, 1.0, 1.0, 3),
        "denoising_vs_linear_packages": (2.0, 2.0, 2.0, 3),
        "own_text_vs_linear": (0.75, 0.75, 0.75, 3),
        "own_text_vs_linear_packages": (1.5, 1.5, 1.5, 3),
        "own_text_vs_embeddings": (0.25, 0.25, 0.25, 3),
        "own_text_vs_embeddings_packages": (0.5, 0.5, 0.5, 3),
    }
    some = of_groups(models, ["linear-rank32", "longer"])
    assert {model.group for model in some} == {"linear-rank32", "longer"}
    assert [result.id for result in latent_results([of(model) for model in some])] == [
        "longer_vs_linear",
        "longer_vs_linear_packages",
    ]
    with pytest.raises(ValueError, match="no group 'shorter'; there are linear-rank32, autoencoder-rank32, longer, "):
        of_groups(models, ["longer", "shorter"])


def test_a_lead_is_that_of_the_best_over_the_best_after_the_same_tokens() -> None:
    def of(k: int, size: Size, tokens: int, nats: float, packages: float, words: Vocabulary = "demo") -> Measured:
        model = Model(f"x{tokens}", "token-level" if k == 1 else "student", words, size, tokens, k)
        texts = {"stdlib": nats, "packages": packages}
        return Measured(model, {text: figures(nats_per_token=nats) for text, nats in texts.items()})

    small, large = SIZE, Size(4, 256)
    results = token_results(
        [
            *(of(1, small, 10, 4.0, 5.0), of(1, large, 10, 4.5, 4.75), of(8, small, 10, 3.5, 5.25)),
            *(of(8, large, 10, 3.75, 4.0), of(1, small, 20, 3.0, 3.0), of(8, small, 20, 3.25, 2.5)),
            *(of(1, small, 10, 9.0, 9.0, "large"), of(8, small, 10, 7.0, 8.0, "large")),
        ]
    )
    assert {result.id: (result.value, result.student, result.token_level) for result in results} == {
        "lead_demo_10": (0.5, "demo-x10-k8-2x128-s0", "demo-x10-token-2x128-s0"),
        "lead_demo_10_packages": (0.75, "demo-x10-k8-4x256-s0", "demo-x10-token-4x256-s0"),
        "lead_demo_20": (-0.25, "demo-x20-k8-2x128-s0", "demo-x20-token-2x128-s0"),
        "lead_demo_20_packages": (0.5, "demo-x20-k8-2x128-s0", "demo-x20-token-2x128-s0"),
        "lead_large_10": (2.0, "large-x10-k8-2x128-s0", "large-x10-token-2x128-s0"),
        "lead_large_10_packages": (1.0, "large-x10-k8-2x128-s0", "large-x10-token-2x128-s0"),
    }


def test_a_size_is_beaten_in_both_speed_and_quality_or_not_at_all() -> None:
    baselines = [
        measured(1, 5.0, 300, size=Size(1, 64)),
        measured(1, 4.5, 200, size=Size(2, 128), written=1.5),
        measured(1, 4.0, 100, size=Size(4, 256)),
        measured(1, 4.9, 900, size=Size(1, 128)),
    ]
    results = pareto_results([*baselines, measured(4, 4.4, 350, size=Size(4, 256), written=1.8), measured(4, 3.0, 10)])
    (result,) = [result for result in results if result.id == "pareto_k4"]
    assert isinstance(result.beaten, list)
    assert (result.value, sorted(result.beaten), result.beaten_in_writing) == (2, ["1x64", "2x128"], ["1x64"])


def test_decode_speed_is_compared_at_the_large_vocabulary_and_the_same_backbone() -> None:
    results = pareto_results(
        [
            measured(1, 5.0, 100, words="large"),
            measured(8, 5.2, 450, words="large"),
            measured(8, 5.2, 999),
            measured(1, 5, 1),
        ]
    )
    (result,) = [result for result in results if result.id == "decode_k8"]
    assert result.ratio == pytest.approx(4.5)
    assert (result.nats_per_token, result.baseline_nats_per_token) == (5.2, 5.0)


def test_a_ratio_is_that_of_the_rounds_in_which_two_models_stood_side_by_side() -> None:
    def timed(k: int, *paces: float) -> Measured:
        model = Model("pareto", "token-level" if k == 1 else "student", "large", SIZE, 1000, k)
        return Measured(model, {}, Speed(paces, tuple(7 * pace * k for pace in paces), 1e6, 10))

    # The second round was five times as slow for both, the third hurt the baseline alone.
    results = speed_results([timed(1, 100, 20, 10), timed(8, 400, 84, 300), timed(2, 150, 30, 160)])
    found = {result.id: [result.ratio, result.low, result.high] for result in results}
    expected = {
        "speed_k2_2x128": [1.5, 1.5, 16.0],
        "speed_k8_2x128": [4.2, 4.0, 30.0],
        "speed16_k2_2x128": [3.0, 3.0, 32.0],
        "speed16_k8_2x128": [33.6, 32.0, 240.0],
    }
    assert found == {name: pytest.approx(figures) for name, figures in expected.items()}


def test_decode_speed_is_the_best_of_the_students_that_beat_two_sizes_and_the_fastest_is_named() -> None:
    tiny, small, large, fast, largest = Size(1, 64), Size(2, 128), Size(4, 256), Size(6, 384), Size(8, 512)
    results = pareto_results(
        [
            *(
                measured(1, 5.0, pace, size, words="large")
                for size, pace in ((tiny, 400), (small, 300), (large, 100), (largest, 10))
            ),
            # Of the backbones that K=8 alone has: it would be the best.
            measured(1, 5.0, 95, fast, words="large", group=FAST),
            measured(8, 4.95, 301, fast, words="large", group=FAST),
            # Beats four, three and one, which is too few.
            measured(8, 4.9, 390, small, words="large"),
            measured(8, 4.9, 299, large, words="large"),
            measured(8, 4.8, 90, largest, words="large"),
            measured(4, 5.2, 350, small, words="large"),
        ]
    )
    found = {result.id: (result.size or result.student, result.ratio) for result in results}
    assert found == {
        "pareto_k4_large": ("large-pareto-k4-2x128-s0", None),
        "pareto_k8_large": ("large-pareto-k8-2x128-s0", None),
        "decode_k4": ("2x128", pytest.approx(350 / 300)),
        "decode_k8_2x128": ("2x128", pytest.approx(1.3)),
        "decode_k8": ("4x256", pytest.approx(2.99)),
        "decode_k8_6x384": ("6x384", pytest.approx(301 / 95)),
        "decode_k8_8x512": ("8x512", pytest.approx(9.0)),
        "fast_k8": ("8x512", pytest.approx(9.0)),
    }


def test_decode_speed_is_that_of_a_backbone_that_beats_two_sizes_at_both_vocabularies() -> None:
    small, large = Size(2, 128), Size(4, 256)
    models = [
        *(measured(1, 5.0, pace, size, words="large") for size, pace in ((small, 300), (large, 100))),
        *(measured(1, 4.0, pace, size) for size, pace in ((small, 600), (large, 200))),
        measured(8, 4.9, 600, small, words="large"),
        measured(8, 4.9, 400, large, words="large"),
        measured(8, 3.9, 900, small),
    ]
    with_two = pareto_results([*models, measured(8, 3.9, 700, large)])
    with_one = pareto_results([*models, measured(8, 3.9, 500, large)])
    chosen = [next(result for result in results if result.id == "decode_k8") for results in (with_two, with_one)]
    assert [(result.size, result.beaten, result.beaten_demo) for result in chosen] == [("4x256", 2, 2), ("2x128", 2, 2)]
    (fallen,) = [result for result in with_one if result.id == "decode_k8_4x256"]
    assert (fallen.beaten, fallen.beaten_demo) == (2, 1)


def test_an_energy_models_nats_are_its_tightest_bound(tmp_path: Path) -> None:
    older = {"x": 0.0}
    newer = {"nats_per_token_bound_n1": 7.0, "nats_per_token_bound_n128": 6.0, "nats_per_token_bound_n128_k3": 5.0}
    for day, figures in (("2026-01-01", older), ("2026-01-02", newer)):
        results = tuple(Result(id=name, value=value, unit="nats/token") for name, value in figures.items())
        how = {"command": "trainer evaluate", "device": "cpu", "seed": 0, "date": f"{day}T00:00:00+00:00"}
        ResultsFile(name="eval", results=results, **how).write(tmp_path)
    model = Model("energy", "student", "demo", SIZE, 1000, 8)
    assert Measured(model, {"stdlib": read_evaluation(tmp_path)}).nats == 6.0


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    models = [measured(k, 4 + k / 10, 100 * k, words=words) for k in (1, 4, 8) for words in VOCABULARIES]
    draw(models, [], tmp_path / "charts" / "one.png", "a note")
    draw_panels(models, [], tmp_path / "panels" / "all.png", "a note")
    for path in (tmp_path / "charts" / "one.png", tmp_path / "panels" / "all.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_further_seeds_stand_hollow_where_the_first_is_as_fast() -> None:
    axes = Figure().add_subplot()
    models = [measured(8, 4.0, 100), measured(8, 4.5, 100, seed=1), measured(8, 3.0, 300, size=Size(4, 256))]
    style = Style("student", "black", "o")
    labels = draw_series(
        axes, models, lambda m: m.speed.one_request if m.speed else None, lambda m: m.nats, style, sizes=True
    )
    assert [label.text.get_text() for label in labels] == ["2 × 128", "4 × 256"]
    points = [(line.get_fillstyle(), np.asarray(line.get_xydata()).tolist()) for line in axes.lines]
    assert points == [("full", [[100, 4.0], [300, 3.0]]), ("none", [[100, 4.5]]), ("none", [])]


def test_training_takes_the_operations_of_student_and_autoencoder() -> None:
    student = replace(measured(8, 4.0, 100), autoencoder_flops=5e8)
    assert student.speed is not None
    assert student.training_flops == student.speed.training_flops * student.model.tokens + 5e8
    assert measured(8, 4.0, 100, seed=1).training_flops is None
