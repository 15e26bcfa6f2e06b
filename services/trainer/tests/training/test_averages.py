"""Averages of weights, against a slow loop over the weights that each step left."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import StudentResult
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training import loop
from latentforge.trainer.training.averages import WeightAverage
from latentforge.trainer.training.step_losses import student_losses
from latentforge.trainer.training.student import result_file, train_student
from latentforge.trainer.training.validation import evaluate_student

EMA = {"teacher.targets": "text", "student.objective": "chunk-ce", "student.ema": 0.6}


def slow_average(weights: Sequence[torch.Tensor], decay: float) -> np.ndarray[Any, Any]:
    average = weights[0].double().numpy()
    for t, each in enumerate(weights[1:], start=1):
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * each.double().numpy()
    return average


def test_the_average_is_that_of_the_formula_and_is_restored_to_the_bit() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    second.bias.requires_grad_(False)
    model = nn.Sequential(first, second)
    average, seen = WeightAverage(model, 0.6), []
    for step in range(30):
        with torch.no_grad():
            first.weight.add_(torch.randn(4, 3))
        average.update()
        seen.append(first.weight.detach().clone())
        if step == 9:
            saved = {name: value.clone() for name, value in average.state().items()}
    assert set(saved) == {"0.weight", "0.bias", "1.weight", "count"}
    # Of the first ten all still rise to the decay.
    np.testing.assert_allclose(saved["0.weight"], slow_average(seen[:10], 0.99), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(average.whole()["0.weight"], slow_average(seen, 0.6), rtol=1e-5, atol=1e-6)
    other = WeightAverage(model, 0.6)
    other.load_state(saved)
    with torch.no_grad():
        for each in seen[10:]:
            first.weight.copy_(each)
            other.update()
    assert all(torch.equal(value, average.state()[name]) for name, value in other.state().items())
    with pytest.raises(ValueError, match=r"averages differ: 0\.bias"):
        other.load_state({name: value for name, value in saved.items() if name != "0.bias"})


def test_a_model_shows_its_average_and_is_itself_again() -> None:
    model = nn.Linear(2, 1, bias=False)
    average, before = WeightAverage(model, 0.9), model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    with suppress(KeyError), average.shown():
        assert torch.equal(model.weight, before)
        raise KeyError
    assert torch.equal(model.weight, before + 1)
    assert torch.equal(average.whole()["weight"], before)


def test_what_is_validated_and_published_is_the_average_of_the_steps_that_count(
    make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: dict[int, dict[str, torch.Tensor]] = {}
    broken = False

    def watched(recipe: Any, model: Any, of: Any, batch: Any, step: int) -> Iterator[Any]:
        nonlocal broken
        weights[step] = {name: p.detach().clone() for name, p in model.model.student.named_parameters()}
        breaks, broken = step == 11 and not broken, broken or step == 11
        for total, terms in student_losses(recipe, model, of, batch, step):
            yield total * float("nan") if breaks else total, terms

    measured: dict[str, torch.Tensor] = {}

    def measure(model: Any, *about: Any) -> dict[str, float]:
        measured.update({name: p.detach().clone() for name, p in model.student.named_parameters()})
        return evaluate_student(model, *about)

    monkeypatch.setattr(loop, "student_losses", watched)
    monkeypatch.setattr(loop, "evaluate_student", measure)
    run = make_run("a", overrides=EMA)
    train_student(run, *split_tail(packed), autoencoder)
    result = StudentResult.read(result_file(run, "student"))
    # Back from step 11 to the state of step 8.
    assert [skipped.step for skipped in result.skipped] == [8]
    place = list_checkpoints(run.settings.checkpoints_dir / "a")[-1]
    state = load_file(run.folder / "state" / "student" / "step-00000012" / "model.safetensors")
    published = load_file(place / "student" / "model.safetensors")
    for name, value in published.items():
        last = state[f"student.{name}"]
        steps = [*(weights[step][name] for step in range(1, 12)), last]
        np.testing.assert_allclose(value, slow_average(steps, 0.6), rtol=1e-4, atol=1e-6)
        assert torch.equal(measured[name], value)
    assert not all(torch.equal(value, state[f"student.{name}"]) for name, value in published.items())
    manifest = read_manifest(place)
    assert manifest.ema == 0.6
    assert manifest.metrics["held_out_ce"] == result.curve[-1].ce


def test_interrupted_runs_end_with_the_same_bits(make_run: Any, packed: PackedData, autoencoder: Path) -> None:
    def trained(name: str, *stops: int | None) -> tuple[dict[str, torch.Tensor], ...]:
        for stop in stops:
            run = make_run(name, overrides=EMA, stop_at=stop and ("student", stop))
            try:
                train_student(run, *split_tail(packed), autoencoder)
            except Interrupted:
                assert stop is not None
        place = list_checkpoints(run.settings.checkpoints_dir / name)[-1]
        state = run.folder / "state" / "student" / place.name
        files = (place / "student" / "model.safetensors", state / "model.safetensors", state / "optimizer.safetensors")
        return tuple(load_file(file) for file in files)

    whole, cut = trained("whole", None), trained("cut", 2, 7, None)
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(TrainerError, match=r"was begun with student\.ema = 0\.6, now it is 0\.5"):
        train_student(make_run("cut", overrides=EMA | {"student.ema": 0.5}), *split_tail(packed), autoencoder)
