import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.model.autoencoder import Autoencoder
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import batch_indices
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import read_progress
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.batches import training_sequences
from latentforge.trainer.training.autoencoder import chunk_batch, train_autoencoder, training_text
from latentforge.trainer.training.validation import evaluate_autoencoder


def weights(run: Any) -> dict[str, Any]:
    return load_file(run.folder / "autoencoder" / "model.safetensors")


def test_resume_equals_no_interruption_bit_for_bit(make_run: Any, packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    whole, cut = make_run("whole"), make_run("cut", stop_at=("autoencoder", 7))
    result = train_autoencoder(whole, train, held_out)
    with pytest.raises(Interrupted):
        train_autoencoder(cut, train, held_out)
    saved = sorted(p.name for p in (cut.folder / "state" / "autoencoder").glob("step-*"))
    assert saved == ["step-00000004", "step-00000007"]
    resumed = train_autoencoder(make_run("cut"), train, held_out)
    for name, value in weights(whole).items():
        assert np.array_equal(value, weights(cut)[name]), name
    assert resumed.model_dump(exclude={"seconds"}) == result.model_dump(exclude={"seconds"})
    assert result.k == 4
    assert result.d == 16
    # As it was before its first step, on the same chunks under the same noise.
    torch.manual_seed(whole.recipe.seed)
    first = Autoencoder(whole.recipe.autoencoder_config(whole.tokenizer.vocab_size, whole.tokenizer.pad_id))
    untrained = evaluate_autoencoder(first, held_out, whole.recipe.seed)
    assert untrained.pop("chunks") == result.chunks
    assert result.untrained is not None
    assert result.untrained.model_dump() == untrained
    assert untrained["token_exact"] != result.token_exact


def test_a_kill_beside_a_validation_leaves_no_step_without_its_figures(
    make_run: Any, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = split_tail(packed)

    def killed(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("latentforge.trainer.training.autoencoder.evaluate_autoencoder", killed)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(make_run(), train, held_out)
    train_autoencoder(make_run(), train, held_out)
    lines = read_progress(make_run().folder)
    assert [line.step for line in lines if line.kind == "held_out"] == [4, 8, 12]


def test_a_finished_autoencoder_is_left_alone(make_run: Any, packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    result = train_autoencoder(make_run(), train, held_out)
    before = (make_run().folder / "autoencoder" / "model.safetensors").stat().st_mtime_ns
    assert train_autoencoder(make_run(), train, held_out) == result
    assert (make_run().folder / "autoencoder" / "model.safetensors").stat().st_mtime_ns == before
    assert "finished before" in make_run.output.getvalue()


def test_a_changed_recipe_is_refused(make_run: Any, packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    train_autoencoder(make_run(), train, held_out)
    with pytest.raises(TrainerError, match=r"autoencoder\.optim\.lr = 0\.003, now it is 0\.5"):
        train_autoencoder(make_run(overrides={"autoencoder.optim.lr": 0.5}), train, held_out)
    # How often it is saved does not change what comes out.
    train_autoencoder(make_run(overrides={"autoencoder.save_every": 3}), train, held_out)


def test_it_learns(make_run: Any, packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    run = make_run(overrides={"autoencoder.optim.steps": 100, "autoencoder.optim.lr": 0.01})
    figures = train_autoencoder(run, train, held_out)
    assert figures.token_exact > 0.6
    assert figures.chunk_exact <= figures.token_exact
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["ce"] > 4 * records[-2]["ce"]
    assert {"stage", "step", "kind", "time", "ce", "kl", "lr", "grad_norm", "tok_per_s"} <= set(records[0])


# Norms keep their weights in float32, and torch says that this costs speed.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_in_bfloat16_it_learns_the_same(make_run: Any, packed: PackedData) -> None:
    steps = {"autoencoder.optim.steps": 40, "autoencoder.optim.lr": 0.01}
    exact, rounded = (
        train_autoencoder(make_run(name, overrides={**steps, "precision": name}), *split_tail(packed))
        for name in ("float32", "bfloat16")
    )
    assert exact.loss is not None
    assert exact.loss < 4
    assert rounded.loss == pytest.approx(exact.loss, abs=0.05)
    assert rounded.token_exact == pytest.approx(exact.token_exact, abs=0.02)


def test_batches_hold_text_of_every_phase_random_chunks_and_pads(make_run: Any) -> None:
    recipe = make_run(overrides={"autoencoder.pad_share": 0.25, "autoencoder.random_share": 0.25}).recipe.autoencoder
    stream = np.arange(100, 1100, dtype=np.uint16)
    phases = set()
    for step in range(400):
        batch = chunk_batch(stream, recipe, 4, 1, 260, 0, step)
        assert batch.shape == (16, 4)
        text = batch[:12]
        for row in text:
            real = row[row != 1]
            assert (real.diff() == 1).all()
        assert (text[3:] != 1).all()
        assert (text[:3, 0] == 1).all()
        phases |= set((text[3:, 0] % 4).tolist())
        assert (batch[12:] < 260).all()
    assert phases == {0, 1, 2, 3}


@pytest.mark.parametrize(("seed", "batch_size", "steps"), [(0, 1, 3), (5, 2, 2)])
def test_it_can_be_held_to_the_text_that_a_student_learns(
    make_run: Any, packed: PackedData, seed: int, batch_size: int, steps: int
) -> None:
    run = make_run(overrides={"seed": seed, "student.optim.batch_size": batch_size})
    of_student = [s for step in range(steps) for s in training_sequences(run, packed, step)]
    num_tokens = sum(len(s) for s in of_student)
    # Of a sequence that is begun it sees nothing.
    text = training_text(packed, num_tokens + 1, seed)
    assert text[np.arange(len(text))].tolist() == [t for s in of_student for t in s.tolist()]
    for most, wanted in ((10**9, sorted(packed.tokens.tolist())), (None, packed.tokens.tolist())):
        every = training_text(packed, most, seed)
        found = every[np.arange(len(every))].tolist()
        assert (sorted(found) if most else found) == wanted
    with pytest.raises(
        TrainerError, match=r"autoencoder\.text_tokens=5 is less than a sequence; set it to \d+ or more"
    ):
        training_text(packed, 5, seed)


def test_held_to_one_sequence_it_is_as_if_there_were_no_other(make_run: Any, packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    first = int(batch_indices(len(train), 1, 0, 0)[0])
    held = make_run("held", overrides={"autoencoder.text_tokens": train.meta.sequence_length})
    alone, free = make_run("alone"), make_run("free")
    train_autoencoder(held, train, held_out)
    train_autoencoder(alone, train.part(first, first + 1), held_out)
    train_autoencoder(free, train, held_out)
    for name, value in weights(held).items():
        assert np.array_equal(value, weights(alone)[name]), name
    assert not np.array_equal(weights(held)["embedding.weight"], weights(free)["embedding.weight"])


def test_a_torn_or_missing_autoencoder_is_never_left(make_run: Any, packed: PackedData, tmp_path: Path) -> None:
    train, held_out = split_tail(packed)
    with pytest.raises(TrainerError, match="is not finite"):
        train_autoencoder(make_run(overrides={"autoencoder.optim.lr": 1e30}), train, held_out)
    assert not (tmp_path / "runs" / "tiny" / "autoencoder").exists()
