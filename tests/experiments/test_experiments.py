"""Experiments: what is planned and how jobs are run."""

import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.commands import CommandJob, Places, autoencoder_job, evaluation_job, student_job
from experiments.comparisons import (
    COMPARISONS,
    OBJECTIVES,
    autoencoder_models,
    draft_models,
    equal_time_models,
    feature_models,
    latent_models,
)
from experiments.experiment import Experiment
from experiments.figures import (
    draft_results,
    equal_time_results,
)
from experiments.fresh import fresh_model, speed_models
from experiments.jobs import StaleError, run_jobs
from experiments.measured import Measured
from experiments.pareto import longer_models, pareto_models, seed_models
from experiments.plan import DECODER, AutoencoderPlan, Model, Size, Vocabulary
from experiments.scales import SCALES, ScaleName
from experiments.speed import neighbours
from latentforge.core.results import Result
from latentforge.model.config import BackboneConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config import objectives as trainer_objectives
from tools.processes import ChildError, Children

SIZE = Size(2, 128)
VOCABULARIES: tuple[Vocabulary, ...] = ("demo", "large")


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
    models = (*pareto_models(scale), *seed_models(scale), *longer_models(scale))
    for student in (m for m in models if m.kind == "student"):
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


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_longer_training_is_that_of_the_charts_models_on_more_of_the_text(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    models = [m for m in longer_models(scale) if m.vocabulary == vocabulary]
    once = [m for m in models if m.tokens == scale.tokens[vocabulary]]
    assert set(once) <= set(pareto_models(scale))
    assert {(m.kind, str(m.size)) for m in once} == {
        ("student", "2x128"),
        ("student", "4x256"),
        ("token-level", "4x256"),
        ("token-level", "6x384" if vocabulary == "large" else "3x192"),
    }
    for model in once:
        for times in (2, 4):
            (longer,) = [
                m for m in models if m.tokens == times * model.tokens and (m.kind, m.size) == (model.kind, model.size)
            ]
            jobs = [student_job(places, scale, m).command for m in (model, longer)]
            changed = {value for command in jobs for value in command} - set(jobs[0]).intersection(jobs[1])
            names = {value.split("=")[0] for value in changed if "=" in value}
            assert names == {"student.optim.steps", "student.publish_every"}
            assert f"student.optim.steps={longer.tokens // scale.sequence_length}" in jobs[1]
    assert len(models) == 3 * len(once)


def test_the_compared_objectives_are_the_trainers() -> None:
    assert set(OBJECTIVES) == set(trainer_objectives.OBJECTIVES)


def test_what_drafts_gain_is_counted_seed_by_seed() -> None:
    models = draft_models(SCALES[ScaleName.cpu])
    assert {m.seed for m in models} == {0, 1}
    assert not any(m.writes for m in models)
    gain = {"chunk-kd-heavy": 0.0, "chunk-tv": 0.25, "chunk-reverse-kl": -0.5}
    measured = []
    for m in models:
        values = {"draft_mean_accepted": 1.0 + m.seed + (1 + m.seed) * gain[str(m.objective)]}
        values |= {"acceptance": 0.5, "acceptance_low": 0.25, "nats_per_token": 3.0 - gain[str(m.objective)]}
        results = {name: Result(id=name, value=value, unit="share") for name, value in values.items()}
        measured.append(Measured(m, {"stdlib": results}))
    found = {result.id: result for result in draft_results(measured)}
    accepted = found["draft_mean_accepted_chunk-tv"]
    assert (accepted.value, accepted.low, accepted.high) == (0.375, 0.25, 0.5)
    assert found["nats_chunk-reverse-kl"].value == -0.5
    assert found["acceptance_chunk-tv"].value == 0


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
    found = {m: nats.get(str(m.objective), 1.0) + m.seed * 0.1 for m in models}
    measured = [
        Measured(m, {"stdlib": {"nats_per_token": Result(id="nats_per_token", value=value, unit="nats/token")}})
        for m, value in found.items()
    ]
    (result,) = equal_time_results(measured)
    assert result.id == "vs_seed_objective"
    assert result.value == pytest.approx(1.5)


def test_a_rate_is_the_median_of_a_runs_steps(tmp_path: Path) -> None:
    experiment = Experiment(ScaleName.smoke, tmp_path, 1, Console(quiet=True))
    model = Model("one", "student", "demo", SIZE, 1000, 8)
    run = experiment.places.runs / model.run
    run.mkdir(parents=True)
    about = {"stage": "student", "step": 1, "time": 0.0}
    entries: list[dict[str, Any]] = [{"kind": "train", "tok_per_s": pace} for pace in (1.0, 7.0, 3.0)]
    lines = [json.dumps(about | entry) for entry in [{"kind": "held_out", "ce": 1.0}, *entries]]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert experiment.rates([model]) == {"one": 3.0}


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
    decoder = config.chunk_decoder
    assert (decoder.frequent_ids, decoder.width, decoder.rank) == (2048, 256, 128)
    assert (config.logit_features.kind, config.logit_features.width, autoencoder.hidden_size) == ("embeddings", 32, 32)
    assert config.induction.context == 4
    baseline = fresh_model(scale, next(m for m in models if m.k == 1))
    assert isinstance(baseline, TokenLevelModel)
    shared = BackboneConfig.model_fields
    assert {name: getattr(baseline.config, name) for name in shared} == {name: getattr(config, name) for name in shared}


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


def test_latents_are_compared_whose_autoencoders_differ_in_one_thing(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    first = [m for m in latent_models(scale) if m.seed == 0]
    linear, latent, longer, denoising, both, own_text, embeddings = first
    # Trained once for both comparisons.
    assert {linear, latent} <= set(feature_models(scale))
    default = AutoencoderPlan("large", 8)
    assert latent.autoencoder_plan == default

    def settings(job: CommandJob, run: str) -> set[str]:
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
    assert changed == {"student.model.logit_features.kind=embeddings"}
    assert embeddings.autoencoder_plan == own_text.autoencoder_plan


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
    def job(name: str, code: str) -> CommandJob:
        return CommandJob(name, [sys.executable, "-c", code], tmp_path / name)

    def run(*jobs: CommandJob) -> None:
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
