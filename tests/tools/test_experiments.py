"""Experiments: what is planned, how jobs are run, and what the bars say of figures that are known."""

import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from latentforge.model.config import BackboneConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer import objectives as trainer_objectives
from tools.experiments.chart import draw, draw_series
from tools.experiments.commands import Job, Places, autoencoder_job, evaluation_job, student_job
from tools.experiments.comparisons import (
    COMPARISONS,
    OBJECTIVES,
    autoencoder_models,
    equal_time_models,
    latent_models,
    of_groups,
    row_models,
)
from tools.experiments.experiment import Experiment
from tools.experiments.figures import (
    Measured,
    equal_time_rows,
    latent_rows,
    objective_rows,
    pareto_rows,
    read_evaluation,
    speed_rows,
)
from tools.experiments.fresh import fresh_model, speed_models
from tools.experiments.jobs import StaleError, run_jobs
from tools.experiments.pareto import pareto_models, seed_models
from tools.experiments.plan import DECODER, AutoencoderPlan, Model, Size, Vocabulary
from tools.experiments.scales import SCALES, ScaleName
from tools.experiments.speed import Speed, neighbours
from tools.processes import ChildError, Children

SIZE = Size(2, 128)
VOCABULARIES: tuple[Vocabulary, ...] = ("demo", "large")


def measured(
    k: int,
    nats: float,
    pace: float,
    size: Size = SIZE,
    seed: int = 0,
    words: Vocabulary = "demo",
    written: float = 2.0,
) -> Measured:
    model = Model("pareto", "token-level" if k == 1 else "student", words, size, 1000, k, seed=seed)
    rows = {"nats_per_token": {"value": nats}, "gen_t07_teacher_nats": {"value": written}}
    speed = Speed((0.9 * pace, pace, 1.1 * pace), (4 * pace,), 1e6, 10) if seed == 0 else None
    return Measured(model, {"stdlib": rows, "packages": rows}, speed)


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_has_what_the_chart_needs(name: ScaleName) -> None:
    scale = SCALES[name]
    compared = [m for make in (*COMPARISONS.values(), autoencoder_models) for m in make(scale)]
    models = [*pareto_models(scale), *seed_models(scale), *compared]
    # Models that two comparisons share are alike in everything.
    assert len({model.run for model in models}) == len(set(models))
    for vocabulary in ("demo", "large"):
        of = [m for m in pareto_models(scale) if m.vocabulary == vocabulary]
        assert {m.size for m in of if m.kind == "student"} <= {m.size for m in of if m.kind == "token-level"}
        assert {m.tokens for m in of} == {scale.tokens[vocabulary]}
    if name != ScaleName.smoke:
        assert {m.k for m in models} == {1, 2, 4, 8, 16}
        assert len(scale.token_sizes) >= 4
        assert len(scale.student_sizes) >= 3
        assert len(scale.seeds) == 3
    for student in (m for m in pareto_models(scale) if m.kind == "student"):
        # Tokens of earlier chunks that its decoder reads.
        assert student.k * student.changes.get(f"{DECODER}window", 1) == 8


def test_a_charts_student_and_its_autoencoder_learn_from_the_same_text(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    for student in (m for m in (*pareto_models(scale), *seed_models(scale)) if m.kind == "student"):
        plan = student.autoencoder_plan
        assert (plan.vocabulary, plan.k, plan.seed) == (student.vocabulary, student.k, student.seed)
        made, trained = autoencoder_job(places, scale, plan).command, student_job(places, scale, student).command
        assert f"autoencoder.text_tokens={student.tokens}" in made
        assert f"student.optim.steps={student.tokens // scale.sequence_length}" in trained
        for option in ("--data", "--tokenizer"):
            assert made[made.index(option) + 1] == trained[trained.index(option) + 1]
        seeds = [{v for v in command if v.startswith("seed=")} - {"seed=0"} for command in (made, trained)]
        assert seeds[0] == seeds[1]
        assert trained[trained.index("--ae-checkpoint") + 1] == str(places.autoencoder(plan))


def test_the_gap_is_the_mean_over_seeds_of_the_same_backbone() -> None:
    rows = pareto_rows(
        [
            *(measured(1, 4.0 + 0.1 * seed, 100, seed=seed) for seed in range(3)),
            *(measured(8, 4.3 + 0.2 * seed, 400, seed=seed) for seed in range(3)),
            measured(8, 9.0, 400, size=Size(4, 256)),
            measured(1, 3.0, 50, size=Size(4, 256)),
        ]
    )
    (gap,) = [row for row in rows if row["id"] == "gap_k8"]
    assert gap["value"] == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert (gap["low"], gap["high"], gap["seeds"], gap["size"]) == (pytest.approx(0.3), pytest.approx(0.5), 3, "2x128")


def test_objectives_are_compared_seed_by_seed() -> None:
    def of(objective: str, seed: int, nats: float, kl: float) -> Measured:
        model = Model(objective, "student", "demo", SIZE, 1000, 8, objective, seed)
        return Measured(model, {"stdlib": {"nats_per_token": {"value": nats}, "kl_to_teacher": {"value": kl}}})

    def bound_of(objective: str, seed: int, nats: float) -> Measured:
        model = Model(objective, "student", "demo", SIZE, 1000, 8, objective, seed)
        return Measured(model, {"stdlib": {"nats_per_token_bound_n128": {"value": nats}}})

    rows = objective_rows(
        [
            *(of("regressed-latent", s, 6.0 + s, 3.0) for s in range(2)),
            *(of("chunk-ce", s, 5.0, 2.0 + s) for s in range(2)),
            *(of("chunk-kd", s, 4.5 - s, 1.5) for s in range(2)),
            *(bound_of("energy", s, 1.0) for s in range(2)),
        ]
    )
    values = {row["id"]: (row["value"], row["low"], row["high"]) for row in rows}
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
        return Measured(model, {text: {"nats_per_token": {"value": nats}} for text, nats in texts.items()})

    models = latent_models(SCALES[ScaleName.cpu])
    rows = latent_rows([of(model) for model in models])
    values = {row["id"]: (row["value"], row["low"], row["high"], row["seeds"]) for row in rows}
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
    assert [row["id"] for row in latent_rows([of(model) for model in some])] == [
        "longer_vs_linear",
        "longer_vs_linear_packages",
    ]
    with pytest.raises(ValueError, match="no group 'shorter'; there are linear-rank32, autoencoder-rank32, longer, "):
        of_groups(models, ["longer", "shorter"])


def test_the_compared_objectives_are_the_trainers() -> None:
    assert set(OBJECTIVES) == set(trainer_objectives.OBJECTIVES)


def test_at_equal_time_the_faster_learns_from_more() -> None:
    scale = SCALES[ScaleName.cpu]
    models = equal_time_models(scale, dict.fromkeys(OBJECTIVES, 1000.0) | {"chunk-ce": 2000.0, "energy": 500.3})
    tokens = {model.objective: model.tokens for model in models}
    assert tokens["regressed-latent"] == tokens["chunk-kd"] == scale.ablation_tokens
    assert tokens["chunk-ce"] == 2 * scale.ablation_tokens
    assert tokens["energy"] % scale.sequence_length == 0
    assert abs(tokens["energy"] - scale.ablation_tokens * 0.5003) <= scale.sequence_length / 2
    seeds = {name: {m.seed for m in models if m.objective == name} for name in OBJECTIVES}
    claimed = {"regressed-latent", trainer_objectives.DEFAULT_OBJECTIVE}
    assert all(seeds[name] == (set(scale.seeds) if name in claimed else {0}) for name in OBJECTIVES)
    nats = {"regressed-latent": 6.0, trainer_objectives.DEFAULT_OBJECTIVE: 4.5}
    rows = [
        Measured(m, {"stdlib": {"nats_per_token": {"value": nats.get(str(m.objective), 1.0) + m.seed * 0.1}}})
        for m in models
    ]
    (row,) = equal_time_rows(rows)
    assert (row["id"], row["value"]) == ("vs_seed_objective", pytest.approx(1.5))


def test_a_rate_is_the_median_of_a_runs_steps(tmp_path: Path) -> None:
    experiment = Experiment(ScaleName.smoke, tmp_path, 1, Console(quiet=True))
    model = Model("one", "student", "demo", SIZE, 1000, 8)
    run = experiment.places.runs / model.run
    run.mkdir(parents=True)
    entries: list[dict[str, Any]] = [{"kind": "train", "tok_per_s": pace} for pace in (1.0, 7.0, 3.0)]
    lines = [json.dumps(entry) for entry in [{"kind": "held_out", "ce": 1.0}, *entries]]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert experiment.rates([model]) == {"one": 3.0}


def test_a_size_is_beaten_in_both_speed_and_quality_or_not_at_all() -> None:
    rivals = [
        measured(1, 5.0, 300, size=Size(1, 64)),
        measured(1, 4.5, 200, size=Size(2, 128), written=1.5),
        measured(1, 4.0, 100, size=Size(4, 256)),
        measured(1, 4.9, 900, size=Size(1, 128)),
    ]
    rows = pareto_rows([*rivals, measured(4, 4.4, 350, size=Size(4, 256), written=1.8), measured(4, 3.0, 10)])
    (row,) = [row for row in rows if row["id"] == "pareto_k4"]
    assert (row["value"], sorted(row["beaten"]), row["beaten_in_writing"]) == (2, ["1x64", "2x128"], ["1x64"])


def test_decode_speed_is_compared_at_the_large_vocabulary_and_the_same_backbone() -> None:
    rows = pareto_rows(
        [
            measured(1, 5.0, 100, words="large"),
            measured(8, 5.2, 450, words="large"),
            measured(8, 5.2, 999),
            measured(1, 5, 1),
        ]
    )
    (row,) = [row for row in rows if row["id"] == "decode_k8"]
    assert row["ratio"] == pytest.approx(4.5)
    assert (row["nats_per_token"], row["rival_nats_per_token"]) == (5.2, 5.0)


def test_a_ratio_is_that_of_the_rounds_in_which_two_models_stood_side_by_side() -> None:
    def timed(k: int, *paces: float) -> Measured:
        model = Model("pareto", "token-level" if k == 1 else "student", "large", SIZE, 1000, k)
        return Measured(model, {}, Speed(paces, tuple(7 * pace * k for pace in paces), 1e6, 10))

    # The second round was five times as slow for both, the third hurt the rival alone.
    rows = speed_rows([timed(1, 100, 20, 10), timed(8, 400, 84, 300), timed(2, 150, 30, 160)])
    found = {row["id"]: (row["ratio"], row["low"], row["high"]) for row in rows}
    assert found == {
        "speed_k2_2x128": (pytest.approx(1.5), pytest.approx(1.5), pytest.approx(16.0)),
        "speed_k8_2x128": (pytest.approx(4.2), pytest.approx(4.0), pytest.approx(30.0)),
        "speed16_k2_2x128": (pytest.approx(3.0), pytest.approx(3.0), pytest.approx(32.0)),
        "speed16_k8_2x128": (pytest.approx(33.6), pytest.approx(32.0), pytest.approx(240.0)),
    }


def test_models_of_one_backbone_are_timed_one_after_the_other() -> None:
    groups = {f"{size}-{k}": str(size) for k in range(4) for size in range(5)}
    shuffle = random.Random(0)
    orders = [neighbours(groups, shuffle) for _ in range(20)]
    for order in orders:
        assert sorted(order) == sorted(groups)
        of = [groups[name] for name in order]
        assert all(of[i : i + 4] == [of[i]] * 4 for i in range(0, 20, 4))
    assert len({tuple(order) for order in orders}) == 20


def test_what_is_timed_without_training_is_what_the_chart_has() -> None:
    scale = SCALES[ScaleName.smoke]
    models = list(speed_models(scale))
    chart = [m for m in pareto_models(scale) if m.vocabulary == "large"]
    # All but the size that has no student.
    assert models == [m for m in chart if m.size != Size(2, 64)]
    student = next(m for m in models if m.k == 8)
    model = fresh_model(scale, student)
    assert isinstance(model, LatentModel)
    config, autoencoder = model.student.config, model.autoencoder.config
    assert (config.vocab_size, config.chunk_size, config.num_layers, config.hidden_size) == (32768, 8, 1, 64)
    assert (config.chunk_decoder.rank, config.induction.context, autoencoder.hidden_size) == (32, 4, 32)
    rival = fresh_model(scale, next(m for m in models if m.k == 1))
    assert isinstance(rival, TokenLevelModel)
    shared = BackboneConfig.model_fields
    assert {name: getattr(rival.config, name) for name in shared} == {name: getattr(config, name) for name in shared}


def test_decode_speed_is_the_best_of_the_students_that_beat_two_sizes_and_the_fastest_is_named() -> None:
    tiny, small, large, largest = Size(1, 64), Size(2, 128), Size(4, 256), Size(8, 512)
    rows = pareto_rows(
        [
            *(
                measured(1, 5.0, pace, size, words="large")
                for size, pace in ((tiny, 400), (small, 300), (large, 100), (largest, 10))
            ),
            # Beats three, two and one, which is too few.
            measured(8, 4.9, 390, small, words="large"),
            measured(8, 4.9, 299, large, words="large"),
            measured(8, 4.8, 90, largest, words="large"),
            measured(4, 5.2, 350, small, words="large"),
        ]
    )
    found = {row["id"]: (row.get("size") or row["student"], row["ratio"]) for row in rows}
    assert found == {
        "pareto_k4_large": ("large-pareto-k4-2x128-s0", None),
        "pareto_k8_large": ("large-pareto-k8-2x128-s0", None),
        "decode_k4": ("2x128", pytest.approx(350 / 300)),
        "decode_k8_2x128": ("2x128", pytest.approx(1.3)),
        "decode_k8": ("4x256", pytest.approx(2.99)),
        "decode_k8_8x512": ("8x512", pytest.approx(9.0)),
        "fast_k8": ("8x512", pytest.approx(9.0)),
    }


def test_an_energy_models_nats_are_its_tightest_bound(tmp_path: Path) -> None:
    rows = [{"id": f"nats_per_token_bound_n{n}", "value": v} for n, v in ((1, 7.0), (128, 6.0))]
    rows.append({"id": "nats_per_token_bound_n128_k3", "value": 5.0})
    (tmp_path / "eval_20260101_000000.json").write_text(json.dumps({"rows": [{"id": "x", "value": 0}]}))
    (tmp_path / "eval_20260102_000000.json").write_text(json.dumps({"rows": rows}))
    model = Model("energy", "student", "demo", SIZE, 1000, 8)
    assert Measured(model, {"stdlib": read_evaluation(tmp_path)}).nats == 6.0


def test_a_teacher_of_another_vocabulary_is_only_asked_what_it_can_answer(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.smoke]
    for kind, k in (("token-level", 1), ("student", 8)):
        model = Model("pareto", kind, "large", SIZE, 1000, k)  # type: ignore[arg-type]
        assert "teacher.targets=text" in student_job(places, scale, model).command
        command = evaluation_job(places, scale, model, "stdlib").command
        assert command[-2:] == ["--teacher-tokenizer", str(Path("models") / "stdlib-teacher")]
        # Nothing is written after these.
        assert "--no-teacher" in evaluation_job(places, scale, model, "packages").command


def test_every_autoencoder_has_a_student_that_is_trained_with_it(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    models = autoencoder_models(scale)
    asked = [student_job(places, scale, model).command for model in models]
    folders = [command[command.index("--ae-checkpoint") + 1] for command in asked]
    assert folders == [str(places.autoencoder(model.autoencoder_plan)) for model in models]
    assert len(set(folders)) == len(models)
    # One that is not named is that of the vocabulary and K.
    (default,) = [m for m in models if m.autoencoder_plan == AutoencoderPlan("demo", 8)]
    other = student_job(places, scale, Model("x", "student", "demo", SIZE, 1000, 8)).command
    assert other[other.index("--ae-checkpoint") + 1] == str(places.autoencoder(default.autoencoder_plan))


def test_latents_are_compared_whose_autoencoders_or_heads_differ_in_one_thing(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    first = [m for m in latent_models(scale) if m.seed == 0]
    linear, latent, longer, denoising, both, own_text, embeddings, residual = first
    # Trained once for both comparisons.
    assert {linear, latent} <= set(row_models(scale))
    default = AutoencoderPlan("large", 8)
    assert latent.autoencoder_plan == default

    def settings(job: Job, run: str) -> set[str]:
        assert job.command[job.command.index("--run") + 1] == run
        return {value for name, value in itertools.pairwise(job.command) if name == "--set"}

    def of_autoencoder(plan: AutoencoderPlan) -> set[str]:
        return settings(autoencoder_job(places, scale, plan), plan.run)

    def of_student(model: Model) -> set[str]:
        return settings(student_job(places, scale, model), model.run)

    assert of_autoencoder(longer.autoencoder_plan) - of_autoencoder(default) == {"autoencoder.optim.steps=900"}
    assert of_autoencoder(denoising.autoencoder_plan) - of_autoencoder(default) == {
        "autoencoder.model.token_dropout=0.5"
    }
    assert of_autoencoder(both.autoencoder_plan) - of_autoencoder(default) == {
        "autoencoder.optim.steps=900",
        "autoencoder.model.token_dropout=0.5",
    }
    # It sees what a student of its seed learns from, and no other text.
    assert of_autoencoder(own_text.autoencoder_plan) - of_autoencoder(both.autoencoder_plan) == {
        f"autoencoder.text_tokens={own_text.tokens}"
    }
    for m in (longer, denoising, both, own_text):
        assert replace(m, group=latent.group, autoencoder=None) == latent
        assert str(places.autoencoder(m.autoencoder_plan)) in student_job(places, scale, m).command
    changed = of_student(embeddings) - of_student(own_text)
    assert changed == {"student.model.rows.kind=embeddings"}
    assert embeddings.autoencoder_plan == own_text.autoencoder_plan
    assert of_student(residual) - of_student(latent) == {"student.model.residual=true"}
    assert residual.autoencoder_plan == default


def test_latents_that_a_difference_is_claimed_of_have_autoencoders_of_every_seed(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    models = latent_models(scale)
    assert {m.group: len([o for o in models if o.group == m.group]) for m in models} == {
        "linear-rank32": 3,
        "autoencoder-rank32": 3,
        "longer": 3,
        "denoising": 1,
        "longer-denoising": 3,
        "longer-denoising-own-text": 3,
        "embeddings": 3,
        "residual": 1,
    }
    # None that reads latents shares its autoencoder.
    claimed = [m for m in models if m.seed > 0 and m.group not in ("linear-rank32", "embeddings")]
    plans = {(m.group, m.seed): m.autoencoder_plan for m in claimed}
    assert len({plan.run for plan in plans.values()}) == len(plans)
    for (_, seed), plan in plans.items():
        command = autoencoder_job(places, scale, plan).command
        assert (f"seed={seed}" in command) == (seed > 0)
        assert plan.seed == seed


def test_jobs_that_are_done_are_left_alone_and_a_failure_is_told(tmp_path: Path) -> None:
    def job(name: str, code: str) -> Job:
        return Job(name, [sys.executable, "-c", code], tmp_path / name)

    def run(*jobs: Job) -> None:
        run_jobs(children, jobs, records=tmp_path / "records", at_once=2, console=Console(quiet=True), what="jobs")

    touch = f"import pathlib; pathlib.Path({str(tmp_path)!r}, {{!r}}).touch()"
    (tmp_path / "before").touch()
    with Children(tmp_path / "logs") as children:
        run(job("before", "raise SystemExit(3)"), job("one", touch.format("one")), job("two", touch.format("two")))
        assert (tmp_path / "two").exists()
        run(job("one", touch.format("one")))
        with pytest.raises(StaleError, match=r"one was made by .* now .*raise SystemExit.*another --folder"):
            run(job("one", "raise SystemExit(3)"))
        with pytest.raises(ChildError, match=r"bad.*exit code 3"):
            run(job("bad", "raise SystemExit(3)"))
        with pytest.raises(ChildError, match="idle ended well, but left no"):
            run(job("idle", ""))


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    models = [measured(k, 4 + k / 10, 100 * k, words=words) for k in (1, 4, 8) for words in VOCABULARIES]
    draw(models, tmp_path / "charts" / "pareto.png", "a note")
    assert (tmp_path / "charts" / "pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_further_seeds_stand_hollow_where_the_first_is_as_fast() -> None:
    axes = Figure().add_subplot()
    models = [measured(8, 4.0, 100), measured(8, 4.5, 100, seed=1), measured(8, 3.0, 300, size=Size(4, 256))]
    draw_series(axes, models, lambda m: m.speed.one_request if m.speed else None, lambda m: m.nats, "black")
    points = [(line.get_fillstyle(), np.asarray(line.get_xydata()).tolist()) for line in axes.lines]
    assert points == [("full", [[100, 4.0], [300, 3.0]]), ("none", [[100, 4.5]]), ("none", [])]
