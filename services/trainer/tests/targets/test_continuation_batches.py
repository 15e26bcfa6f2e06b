from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, student_loss
from latentforge.model.student import Student
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.targets.continuation_batches import lay_out
from latentforge.trainer.targets.kd_targets import kd_targets
from latentforge.trainer.teacher.continuations import Continuation

VOCAB, PAD, EOS, END, K = 260, 1, 0, 3, 4


def example(known_rows: Any, prompt: int, length: int, seed: int = 0, *, stopped: bool = False) -> Continuation:
    ids = np.random.default_rng([prompt, length, seed]).integers(4, VOCAB, prompt + length)
    if stopped:
        ids[-1] = END
    rows = known_rows.rows(known_rows, ids.tolist(), 4)
    arrays = {name: value[prompt - 1 :] for name, value in vars(rows).items() if isinstance(value, np.ndarray)}
    block = SparseRows(first_position=prompt, **arrays)
    whole = ids.astype(np.uint32)
    return Continuation(whole[:prompt], whole[prompt:], block, stopped)


@pytest.fixture
def model(make_run: Any) -> LatentModel:
    recipe = make_run().recipe
    torch.manual_seed(0)
    autoencoder = Autoencoder(recipe.autoencoder_config(VOCAB, PAD))
    return LatentModel(autoencoder, Student(recipe.student_config(PAD, EOS, autoencoder.config))).eval()


@torch.no_grad()
def losses(model: LatentModel, batch: StudentBatch) -> dict[str, float]:
    loss = student_loss(model, batch, ObjectiveWeights())
    return {name: float(getattr(loss, name)) for name in ("ce", "kd", "mse", "total")}


@pytest.mark.parametrize("shift", range(K))
def test_rows_lie_over_the_tokens_they_are_for(known_rows: Any, make_run: Any, shift: int) -> None:
    examples = [example(known_rows, prompt, 6 + prompt % 3) for prompt in (1, 2, 5, 8, 11)]
    batch = lay_out(examples, [shift] * 5, make_run().recipe, PAD, None)
    assert batch.kd is not None
    assert torch.equal(batch.kd.has_row, batch.valid)
    for row, each in enumerate(examples):
        assert batch.tokens[row][batch.valid[row]].tolist() == each.token_ids.tolist()
        # Every continuation begins `shift` tokens after a chunk's start.
        assert int(batch.valid[row].nonzero()[0]) % K == shift
        pads = int((batch.tokens[row] != PAD).nonzero()[0])
        assert pads < K
    assert known_rows.divergence(batch).abs().max() < 1e-5
    assert known_rows.divergence(batch, move=1).mean() > 0.1
    assert known_rows.divergence(batch, move=-1).mean() > 0.1


@torch.no_grad()
def test_only_continuations_are_learnt(known_rows: Any, make_run: Any, model: LatentModel) -> None:
    examples = [example(known_rows, 6, 9), example(known_rows, 3, 4)]
    batch = lay_out(examples, [0, 2], make_run().recipe, PAD, None)
    found = losses(model, batch)
    tokens_btk = batch.tokens.view(2, -1, K)
    output = model.logits(tokens_btk)
    logits = output.logits.flatten(1, 2)
    ce = torch.nn.functional.cross_entropy(
        torch.cat([logits[0, 8:17], logits[1, 6:10]]), torch.cat([batch.tokens[0, 8:17], batch.tokens[1, 6:10]])
    )
    assert found["ce"] == pytest.approx(float(ce), rel=1e-5)
    # Chunks 2 and 3 of the first are within its continuation; the second's continuation ends and begins inside others.
    errors = (output.latents - model.autoencoder.encode(tokens_btk).mean).square().mean(-1)
    assert found["mse"] == pytest.approx(float(errors[0, 2:4].mean()), rel=1e-5)


def test_targets_on_a_prompt_change_no_loss(known_rows: Any, make_run: Any, model: LatentModel) -> None:
    batch = lay_out([example(known_rows, 7, 9), example(known_rows, 5, 6)], [0, 1], make_run().recipe, PAD, None)
    assert batch.kd is not None
    before = losses(model, batch)
    outside = ~batch.valid
    noise = torch.Generator().manual_seed(0)
    changed = {
        "ids": torch.randint(VOCAB, batch.kd.ids.shape, generator=noise),
        "logprobs": -10 * torch.rand(batch.kd.logprobs.shape, generator=noise),
        "counts": torch.full_like(batch.kd.counts, 2),
        "realised_logprobs": torch.full_like(batch.kd.realised_logprobs, -1.0),
        "tail_mass": torch.full_like(batch.kd.tail_mass, 0.5),
        "has_row": torch.ones_like(batch.kd.has_row),
    }
    columns = {
        name: torch.where(outside.unsqueeze(-1) if value.ndim == 3 else outside, changed[name], value)
        for name, value in vars(batch.kd).items()
    }
    assert losses(model, replace(batch, kd=type(batch.kd)(**columns))) == before
    inside = {n: (v if n != "tail_mass" else torch.full_like(v, 0.9)) for n, v in vars(batch.kd).items()}
    assert losses(model, replace(batch, kd=type(batch.kd)(**inside)))["kd"] != before["kd"]


def test_an_example_sees_nothing_of_its_neighbours_nor_of_the_pads_after_it(
    known_rows: Any, make_run: Any, model: LatentModel
) -> None:
    recipe = make_run().recipe
    short, long = example(known_rows, 5, 4), example(known_rows, 9, 11)
    alone = losses(model, lay_out([short], [0], recipe, PAD, None))
    together = lay_out([short, long], [0, 0], recipe, PAD, None)
    assert together.tokens.shape[1] > 12
    assert together.chunk_valid is not None
    masks = torch.tensor([[True], [False]])
    only = replace(together, valid=together.valid & masks, chunk_valid=together.chunk_valid & masks)
    assert losses(model, only) == pytest.approx(alone, rel=1e-5)
    # What comes after the end is seen by nothing before it.
    tokens = together.tokens.clone()
    tokens[0, 12:] = 77
    assert losses(model, replace(only, tokens=tokens)) == pytest.approx(alone, rel=1e-5)
    # While the prompt is: it is the context.
    tokens = together.tokens.clone()
    tokens[0, 4] = 77
    assert losses(model, replace(only, tokens=tokens))["ce"] != pytest.approx(alone["ce"], rel=1e-5)


def test_a_text_that_the_teacher_ended_is_followed_by_end_of_text_without_a_row(known_rows: Any, make_run: Any) -> None:
    recipe = make_run().recipe
    ended = example(known_rows, 4, 5, stopped=True)
    batch = lay_out([ended], [0], recipe, PAD, EOS)
    assert batch.kd is not None
    assert batch.tokens[0, 8:10].tolist() == [END, EOS]
    assert batch.valid[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.kd.has_row[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    cut_off = example(known_rows, 4, 5)
    assert int(lay_out([cut_off], [0], recipe, PAD, EOS).valid.sum()) == 5
    ended.token_ids[-1] = EOS
    assert int(lay_out([ended], [0], recipe, PAD, EOS).valid.sum()) == 5


def test_what_is_longer_than_a_sequence_is_cut_off(known_rows: Any, make_run: Any) -> None:
    batch = lay_out([example(known_rows, 20, 30)], [0], make_run().recipe, PAD, None)
    assert batch.tokens.shape == batch.valid.shape == (1, 32)
    assert batch.kd is not None
    assert batch.kd.has_row.shape == (1, 32)
    assert int(batch.valid.sum()) == 12


@pytest.mark.parametrize("tail_holds_it", [True, False])
def test_mass_without_an_id_belongs_to_the_tail(known_rows: Any, tail_holds_it: bool) -> None:
    rows = example(known_rows, 1, 6).rows
    # The second likeliest entry of each row could not be mapped.
    kept = [0, 2, 3]
    unmapped = np.exp(rows.logprobs[:, 1])
    tail = rows.tail_mass + (unmapped if tail_holds_it else 0)
    mapped = replace(
        rows,
        ids=rows.ids[:, kept],
        logprobs=rows.logprobs[:, kept],
        counts=np.full(6, 3, dtype=np.uint16),
        tail_mass=tail.astype(np.float32),
        unmapped_mass=unmapped,
    )
    targets = kd_targets([mapped], 7, [0])
    assert torch.allclose(targets.logprobs[0, 1:].exp().sum(-1) + targets.tail_mass[0, 1:], torch.ones(6))
    # Beside a row of another width.
    both = kd_targets([mapped, rows], 7, [0, 0])
    assert both.ids.shape == (2, 7, 4)
    assert both.counts[:, 1].tolist() == [3, 4]
    assert torch.equal(both.tail_mass[0], targets.tail_mass[0])
