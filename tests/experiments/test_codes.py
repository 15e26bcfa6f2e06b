"""Autoencoders whose tokens start with equal codes: what is trained, and what the command says of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.__main__ import app
from experiments.codes import code_plans, exact_tokens
from experiments.commands import Places, autoencoder_job, packing_jobs, text_jobs
from experiments.plan import AutoencoderPlan
from experiments.results import ModelResults
from experiments.scales import SCALES, ScaleName
from latentforge.trainer.results import AutoencoderResult, ReconstructionFigures

EQUAL = "autoencoder.model.equal_codes=true"


def found(plan: AutoencoderPlan, trained: float, untrained: float | None) -> AutoencoderResult:
    def figures(share: float) -> dict[str, float]:
        return {"token_exact": share, "chunk_exact": 0.5, "token_exact_noisy": share - 0.125, "chunk_exact_noisy": 0.25}

    before = None if untrained is None else ReconstructionFigures(**figures(untrained))
    return AutoencoderResult(k=8, d=plan.d, steps=10, seconds=1.0, chunks=4, untrained=before, **figures(trained))


def test_autoencoders_with_equal_codes_differ_from_the_others_in_nothing_else(tmp_path: Path) -> None:
    places, scale = Places(tmp_path), SCALES[ScaleName.cpu]
    plans = code_plans([128, 256], [0, 1])
    assert [(plan.d, plan.seed) for plan in plans] == [(128, 0), (128, 1), (256, 0), (256, 1)]

    def settings(plan: AutoencoderPlan) -> set[str]:
        command = autoencoder_job(places, scale, plan).command
        return {value for value in command if "=" in value}

    for plan in plans:
        other = replace(plan, equal_codes=False, seed=0)
        seed = {f"seed={plan.seed}"} if plan.seed else set()
        assert settings(plan) - settings(other) == {EQUAL} | seed
        assert settings(other) <= settings(plan)
        assert other.run not in {plan.run for plan in plans}


def test_the_command_gives_what_training_adds_to_the_untrained(tmp_path: Path) -> None:
    places, scale = Places(tmp_path / "work"), SCALES[ScaleName.smoke]
    for job in (*text_jobs(places, scale), *packing_jobs(places, scale, "demo")):
        job.done.parent.mkdir(parents=True, exist_ok=True)
        job.done.touch()
    plans = code_plans([128, 256], scale.seeds)
    for plan in plans:
        folder = places.autoencoder(plan)
        folder.mkdir(parents=True)
        found(plan, 0.5 + plan.d / 1024, 0.25).write(folder / "evaluation.json")
    options = ["--scale", "smoke", "--folder", str(places.root), "--results", str(tmp_path / "results")]
    options += ["--latent-size", "128", "--latent-size", "256"]
    done = CliRunner().invoke(app, ["codes", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "results").glob("codes_*.json")
    results = ModelResults.read(path)
    assert results.by_id.keys() == {"ae_d128", "ae_d128_noisy", "ae_d256", "ae_d256_noisy"}
    claimed = results.by_id["ae_d128"]
    assert (claimed.value, claimed.baseline, claimed.baseline_value, claimed.ratio) == (0.625, "untrained", 0.25, 2.5)
    assert results.by_id["ae_d256_noisy"].value == 0.625
    assert results.by_id["ae_d128_noisy"].baseline_value == 0.125
    assert [model["run"] for model in results.models] == [plan.run for plan in plans]
    assert "ae_d128: 0.625 share of tokens, 2.50 times untrained" in done.output


def test_a_figure_is_the_mean_over_seeds_and_has_no_baseline_where_one_is_missing() -> None:
    plan = AutoencoderPlan("demo", 8)
    result = exact_tokens("ae", "token_exact", [found(plan, share, 0.5) for share in (0.75, 0.875, 1.0)])
    assert (result.value, result.low, result.high, result.seeds) == (0.875, 0.75, 1.0, 3)
    assert result.baseline_value == pytest.approx(0.5)
    old = exact_tokens("ae", "token_exact", [found(plan, 0.75, 0.5), found(plan, 1.0, None)])
    assert (old.value, old.baseline_value) == (0.875, None)
