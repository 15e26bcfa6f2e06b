import dataclasses
from collections.abc import Callable

import pytest
import torch

from latentforge.model.energy import energy_loss
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, latent_mse, masked_mean, student_loss
from latentforge.model.sparse_kd import KdTargets, sparse_losses

MakeModel = Callable[..., LatentModel]
V, K, T, B, TOP = 64, 4, 3, 2, 6
L = K * T


@pytest.fixture
def batch(rng: torch.Generator) -> StudentBatch:
    """Sequence 0 begins with K+1 pads, so that its first chunk has no valid token; sequence 1 with none."""
    tokens = torch.randint(2, V, (B, L), generator=rng)
    valid = torch.ones(B, L, dtype=torch.bool)
    valid[0, : K + 1] = False
    tokens = torch.where(valid, tokens, 1)
    teacher = (2 * torch.randn(B, L, V, generator=rng)).log_softmax(-1)
    top = teacher.topk(TOP)
    has_row = valid.clone()
    has_row[1, 5:7] = False
    realised = teacher.gather(-1, tokens[..., None])[..., 0]
    counts = torch.full((B, L), TOP)
    tail = 1 - top.values.exp().sum(-1)
    return StudentBatch(tokens, valid, KdTargets(top.indices, top.values, counts, realised, tail, has_row))


def test_terms_are_means_over_their_own_positions(make_model: MakeModel, batch: StudentBatch) -> None:
    model = make_model()
    loss = student_loss(model, batch, ObjectiveWeights(ce=0.5, kd=2.0, mse=3.0, tv=4.0, reverse_kl=0.25))
    kd = batch.kd
    assert kd is not None
    tokens_btk = batch.tokens.view(B, T, K)
    out = model.logits(tokens_btk)
    logits = out.logits.flatten(1, 2)
    ce = torch.nn.functional.cross_entropy(logits[batch.valid], batch.tokens[batch.valid])
    per_row = sparse_losses(logits[kd.has_row], kd.select(kd.has_row), batch.tokens[kd.has_row])
    chunks = batch.valid.view(B, T, K).any(-1)
    assert chunks.tolist() == [[False, True, True], [True, True, True]]
    mse = (out.latents - model.autoencoder.encode(tokens_btk).mean)[chunks].square().mean()
    torch.testing.assert_close(loss.ce, ce)
    for name in ("kd", "tv", "reverse_kl"):
        torch.testing.assert_close(getattr(loss, name), getattr(per_row, name).mean())
    torch.testing.assert_close(loss.mse, mse)
    divergences = 2 * per_row.kd.mean() + 4 * per_row.tv.mean() + 0.25 * per_row.reverse_kl.mean()
    torch.testing.assert_close(loss.total, 0.5 * ce + divergences + 3 * mse)
    assert loss.tokens == batch.valid.sum()
    assert not loss.ce.requires_grad


def test_what_stands_where_there_is_no_row_does_not_matter(make_model: MakeModel, batch: StudentBatch) -> None:
    model = make_model()
    kd = batch.kd
    assert kd is not None
    hole = ~kd.has_row
    garbled = dataclasses.replace(
        kd,
        logprobs=torch.where(hole[..., None], torch.nan, kd.logprobs),
        realised_logprobs=torch.where(hole, -torch.inf, kd.realised_logprobs),
        tail_mass=torch.where(hole, torch.nan, kd.tail_mass),
    )
    for parameter in model.parameters():
        parameter.grad = None
    weights = ObjectiveWeights(tv=1.0, reverse_kl=1.0)
    loss = student_loss(model, dataclasses.replace(batch, kd=garbled), weights)
    wanted = student_loss(model, batch, weights)
    assert loss.total == wanted.total
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("head", ["deterministic", "energy"])
def test_every_trainable_parameter_gets_a_finite_gradient(
    make_model: MakeModel, batch: StudentBatch, head: str, rng: torch.Generator
) -> None:
    model = make_model(head=head).train()
    weights = ObjectiveWeights(energy=1.0 if head == "energy" else 0.0)
    student_loss(model, batch, weights, rng).total.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


def test_the_energy_term_is_that_of_the_samples(make_model: MakeModel, batch: StudentBatch) -> None:
    model = make_model(head="energy")
    weights = ObjectiveWeights(ce=0, kd=0, mse=0, energy=1)
    loss = student_loss(model, batch, weights, torch.Generator().manual_seed(4), energy_samples=3, energy_draws=20)
    rng = torch.Generator().manual_seed(4)
    tokens_btk = batch.tokens.view(B, T, K)
    samples = model.student.head(model.hidden(tokens_btk), 3, rng).flatten(1, 2)
    posterior = model.autoencoder.encode(tokens_btk.flatten(0, 1))
    wanted = energy_loss(samples, posterior, 20, rng)[batch.valid.view(B * T, K).any(-1)].mean()
    torch.testing.assert_close(loss.total, wanted)


def test_without_rows_ce_alone_trains(make_model: MakeModel, batch: StudentBatch) -> None:
    loss = student_loss(make_model(), StudentBatch(batch.tokens, batch.valid), ObjectiveWeights(kd=0, mse=0))
    assert loss.kd == 0
    assert loss.total == loss.ce


def test_impossible_requests_say_what_to_set(make_model: MakeModel, batch: StudentBatch) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"kd weight 1\.0, but the batch has no teacher rows"):
        student_loss(model, StudentBatch(batch.tokens, batch.valid), ObjectiveWeights())
    with pytest.raises(ValueError, match=r"tv weight 0\.5, but the batch has no teacher rows"):
        student_loss(model, StudentBatch(batch.tokens, batch.valid), ObjectiveWeights(kd=0, tv=0.5))
    with pytest.raises(ValueError, match=r"energy weight 1\.0 with head='deterministic'"):
        student_loss(model, batch, ObjectiveWeights(energy=1.0))
    with pytest.raises(ValueError, match="sequences of 10 tokens are no multiple of K=4"):
        student_loss(model, StudentBatch(batch.tokens[:, :10], batch.valid[:, :10]), ObjectiveWeights(kd=0))
    with pytest.raises(ValueError, match="the weight of kd is -1"):
        ObjectiveWeights(kd=-1)


def test_masked_means(rng: torch.Generator) -> None:
    values, mask = torch.randn(2, 5, generator=rng), torch.tensor([[True, False, True, True, False]] * 2)
    torch.testing.assert_close(masked_mean(values, mask), values[mask].mean())
    assert masked_mean(values, torch.zeros_like(mask)) == 0
    a, b = torch.randn(2, 5, 3, generator=rng), torch.randn(2, 5, 3, generator=rng)
    torch.testing.assert_close(latent_mse(a, b, mask), (a - b)[mask].square().mean())
