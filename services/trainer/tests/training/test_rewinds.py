"""A loss that breaks down: the run goes back and past the data since, and does the same however it was interrupted."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.losses import StudentBatch
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import AutoencoderResult, StudentResult
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.batches import training_batch
from latentforge.trainer.training import autoencoder as autoencoder_module
from latentforge.trainer.training import loop
from latentforge.trainer.training.autoencoder import chunk_batch, train_autoencoder, training_text
from latentforge.trainer.training.step_losses import autoencoder_losses, student_losses
from latentforge.trainer.training.student import result_file, train_student

TEXT = {"teacher.targets": "text", "student.objective": "chunk-ce"}


@pytest.fixture
def train(make_run: Any, packed: PackedData, autoencoder: Path) -> Callable[..., Any]:
    """Trains a student of the text alone; gives its run."""

    def train(name: str = "a", stop_at: Any = None, **overrides: Any) -> Any:
        more = {key.replace("__", "."): value for key, value in overrides.items()}
        run = make_run(name, overrides=TEXT | more, stop_at=stop_at)
        with nullcontext() if stop_at is None else pytest.raises(Interrupted):
            train_student(run, *split_tail(packed), autoencoder)
        return run

    return train


def result_of(run: Any) -> StudentResult:
    return StudentResult.read(result_file(run, "student"))


def steps_of(run: Any) -> list[int]:
    return [read_manifest(place).step for place in list_checkpoints(run.settings.checkpoints_dir / run.name)]


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    last = list_checkpoints(run.settings.checkpoints_dir / run.name)[-1]
    return dict(load_file(last / "student" / "model.safetensors"))


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = weights_of(one), weights_of(other)
    return set(ours) == set(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def poisoned(monkeypatch: Any, run: Any, data: PackedData, bad: set[int], factor: float = float("nan")) -> None:
    """The batches of some steps of the data have losses that nothing can be learnt from."""
    tokens = [training_batch(run, data, step, None).tokens for step in bad]

    def losses(recipe: Any, model: Any, weights: Any, batch: StudentBatch, step: int) -> Iterator[Any]:
        broken = any(torch.equal(batch.tokens, each) for each in tokens)
        for total, terms in student_losses(recipe, model, weights, batch, step):
            if broken:
                yield total * factor, {name: term * factor for name, term in terms.items()}
            else:
                yield total, terms

    monkeypatch.setattr(loop, "student_losses", losses)


def test_a_loss_that_is_not_finite_leads_back_and_past_the_data_since(
    train: Any, packed: PackedData, monkeypatch: Any
) -> None:
    first = train("plain")
    data = split_tail(packed)[0]
    poisoned(monkeypatch, first, data, {6})
    run = train()
    (line,) = result_of(run).skipped
    # Regular states are those of steps 1, 4 and 6: published or saved.
    assert (line.step, line.first, line.last) == (6, 6, 6)
    assert result_of(run).steps == 12
    # Interrupted before and after, and so saved more often, it does the same.
    for at in (5, 8):
        train(f"cut{at}", stop_at=("student", at))
        assert same_weights(run, train(f"cut{at}"))
    assert not same_weights(first, run)


def test_data_since_the_last_regular_state_is_skipped_whole(train: Any, packed: PackedData, monkeypatch: Any) -> None:
    data = split_tail(packed)[0]
    plain = train("plain")
    poisoned(monkeypatch, plain, data, {11})
    seen: list[torch.Tensor] = []
    losses: Any = getattr(loop, "student_losses")  # noqa: B009 - it may be the poisoned one

    def watched(recipe: Any, model: Any, weights: Any, batch: StudentBatch, step: int) -> Iterator[Any]:
        seen.append(batch.tokens)
        yield from losses(recipe, model, weights, batch, step)

    monkeypatch.setattr(loop, "student_losses", watched)
    run = train()
    (line,) = result_of(run).skipped
    assert (line.step, line.first, line.last) == (8, 8, 11)
    wanted = [training_batch(run, data, step, None).tokens for step in [*range(12), 12, 13, 14, 15]]
    assert len(seen) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))


def test_a_run_gives_up_after_so_many_rewinds(train: Any, packed: PackedData, monkeypatch: Any) -> None:
    plain = train("plain")
    poisoned(monkeypatch, plain, split_tail(packed)[0], set(range(6, 40)))
    with pytest.raises(TrainerError, match="the loss is not finite"):
        train(student__max_rewinds=2)
    assert "(2 of at most 2 times)" in plain.console.file.getvalue()


def test_a_spike_is_a_loss_of_many_medians(train: Any, packed: PackedData, monkeypatch: Any) -> None:
    monkeypatch.setattr("latentforge.trainer.training.rewinds._WINDOW", 4)
    data = split_tail(packed)[0]
    plain = train("plain", student__spike=3.0)
    assert result_of(plain).skipped == []
    poisoned(monkeypatch, plain, data, {9}, factor=5.0)
    run = train(student__spike=3.0)
    (line,) = result_of(run).skipped
    assert (line.step, line.first, line.last) == (8, 8, 9)
    assert "more than student.spike=3 times its median" in line.reason
    train("cut", stop_at=("student", 7), student__spike=3.0)
    assert same_weights(run, train("cut", student__spike=3.0))


@pytest.fixture
def learnt(make_run: Any, packed: PackedData, monkeypatch: Any) -> Callable[..., Any]:
    """Trains an autoencoder, of which some steps of the data are poisoned; gives its run and the steps of the data that
    it was shown."""
    train, held_out = split_tail(packed)

    def learnt(
        name: str = "a", stop_at: Any = None, bad: Any = (), factor: float = float("nan"), **overrides: Any
    ) -> tuple[Any, list[int]]:
        run = make_run(name, overrides={f"autoencoder.{k}": v for k, v in overrides.items()}, stop_at=stop_at)
        recipe, config = run.recipe.autoencoder, run.recipe.autoencoder_config(260, 1)
        stream = training_text(train, None, 0)
        of_step = {
            chunk_batch(stream, recipe, config.chunk_size, config.pad_id, config.vocab_size, 0, step)
            .numpy()
            .tobytes(): step
            for step in range(40)
        }
        seen: list[int] = []

        def losses(recipe: Any, model: Any, chunks_nk: torch.Tensor, step: int) -> Iterator[Any]:
            seen.append(of_step[chunks_nk.numpy().tobytes()])
            worse = factor if seen[-1] in bad else 1.0
            for total, terms in autoencoder_losses(recipe, model, chunks_nk, step):
                yield total * worse, {key: term * worse for key, term in terms.items()}

        monkeypatch.setattr(autoencoder_module, "autoencoder_losses", losses)
        with nullcontext() if stop_at is None else pytest.raises(Interrupted):
            train_autoencoder(run, train, held_out)
        return run, seen

    return learnt


def autoencoder_of(run: Any) -> dict[str, torch.Tensor]:
    return dict(load_file(run.folder / "autoencoder" / "model.safetensors"))


def test_an_autoencoder_goes_back_as_a_student_does(learnt: Callable[..., Any]) -> None:
    run, seen = learnt(bad={6})
    # Saved after every fourth step.
    assert seen == [0, 1, 2, 3, 4, 5, 6, *range(7, 15)]
    result = AutoencoderResult.read(run.folder / "autoencoder" / "evaluation.json")
    (line,) = result.skipped
    assert (line.step, line.first, line.last, result.steps) == (4, 4, 6, 12)
    assert "the loss is not finite" in line.reason
    assert run.status.counts == {"rewinds": 1}
    for at in (5, 9):
        learnt(f"cut{at}", stop_at=("autoencoder", at), bad={6})
        cut, _ = learnt(f"cut{at}", bad={6})
        assert AutoencoderResult.read(cut.folder / "autoencoder" / "evaluation.json").skipped == result.skipped
        assert all(torch.equal(value, autoencoder_of(cut)[key]) for key, value in autoencoder_of(run).items())


def test_an_autoencoders_spike_and_its_last_rewind(learnt: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("latentforge.trainer.training.rewinds._WINDOW", 4)
    run, _ = learnt(bad={9}, factor=5.0, spike=3.0)
    (line,) = AutoencoderResult.read(run.folder / "autoencoder" / "evaluation.json").skipped
    assert (line.step, line.first, line.last) == (8, 8, 9)
    assert "more than autoencoder.spike=3 times its median" in line.reason
    with pytest.raises(TrainerError, match="the loss is not finite"):
        learnt("ended", bad=range(6, 40), max_rewinds=2)
