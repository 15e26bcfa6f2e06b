"""Parts of a batch, whatever their sizes, sum to the batch: losses, gradients and the noise that each row sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, InductionConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import LossCounts, ObjectiveWeights, StudentBatch, loss_of
from latentforge.model.noise import Noise, RowNoise, normal, uniform
from latentforge.model.sparse_kd import KdTargets
from latentforge.model.token_level import TokenLevelModel, token_level_config

V, K, T, B, TOP = 64, 4, 3, 5, 6
L = K * T
PARTS = [slice(0, 1), slice(1, 4), slice(4, 5)]


@pytest.fixture
def batch(rng: torch.Generator) -> StudentBatch:
    """Rows that differ in how many tokens are valid and how many have a row, so that means of means are no mean."""
    tokens = torch.randint(2, V, (B, L), generator=rng)
    valid = torch.arange(L) >= torch.tensor([0, 1, 7, 3, 10])[:, None]
    tokens = torch.where(valid, tokens, 1)
    top = (2 * torch.randn(B, L, V, generator=rng)).log_softmax(-1).topk(TOP)
    has_row = valid & (torch.rand(B, L, generator=rng) < 0.6)
    counts, realised = torch.full((B, L), TOP), torch.full((B, L), -4.0)
    kd = KdTargets(top.indices, top.values, counts, realised, 1 - top.values.exp().sum(-1), has_row)
    return StudentBatch(tokens, valid, kd)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_sums(whole: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        # Relative to a tensor's largest entry: its small ones are sums of large ones that cancel.
        assert (parts[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


@pytest.mark.parametrize("kind", ["deterministic", "energy", "token-level"])
def test_a_students_parts_sum_to_its_batch(
    make_model: Callable[..., LatentModel], batch: StudentBatch, kind: str
) -> None:
    head = "deterministic" if kind == "token-level" else kind
    model: Any = make_model(head=head, induction=InductionConfig(context=2, size=8))
    weights = ObjectiveWeights(0.5, 2.0, mse=0.3, energy=0.7 if kind == "energy" else 0.0, tv=3.0, reverse_kl=0.2)
    if kind == "token-level":
        torch.manual_seed(0)
        model = TokenLevelModel(token_level_config(model.student.config))
        weights = ObjectiveWeights(ce=0.5, kd=2.0, mse=0.0, tv=3.0, reverse_kl=0.2)
    counts = LossCounts.of(batch, model.chunk_size)

    def loss(part: StudentBatch, counts: LossCounts | None) -> Any:
        return loss_of(model, part, weights, torch.Generator().manual_seed(5), counts)

    whole = loss(batch, None)
    whole.total.backward()
    of_whole = gradients(model)
    parts = [loss(batch.rows(part), counts) for part in PARTS]
    for part in parts:
        part.total.backward()
    assert_sums(of_whole, gradients(model))
    for name in ("total", "ce", "kd", "tv", "reverse_kl", "mse", "energy", "tokens"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name), msg=name)


def test_an_autoencoders_parts_sum_to_its_batch(
    autoencoder_config: Callable[..., AutoencoderConfig], rng: torch.Generator
) -> None:
    torch.manual_seed(0)
    model = Autoencoder(autoencoder_config(token_dropout=0.3, latent_dropout=0.3)).train()
    chunks = torch.randint(V, (B, K), generator=rng)
    whole = model.loss(chunks, torch.Generator().manual_seed(5))
    whole.total.backward()
    of_whole = gradients(model)
    parts = [
        model.loss(chunks[part], RowNoise(torch.Generator().manual_seed(5), part.start, len(chunks[part]), B))
        for part in PARTS
    ]
    for part in parts:
        part.total.backward()
    assert_sums(of_whole, gradients(model))
    for name in whole._fields:
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name), msg=name)


def test_parts_of_parts_know_their_place(batch: StudentBatch) -> None:
    part = batch.rows(slice(1, 5)).rows(slice(2, 4))
    assert (part.first, part.of) == (3, B)
    assert part.tokens.equal(batch.tokens[3:5])
    assert part.kd is not None
    assert batch.kd is not None
    assert part.kd.ids.equal(batch.kd.ids[3:5])


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_row_has_the_noise_that_the_whole_batch_has_there(draw: Callable[..., Tensor]) -> None:
    def noise(part: slice | None) -> Noise:
        generator = torch.Generator().manual_seed(1)
        return generator if part is None else RowNoise(generator, part.start, part.stop - part.start, B)

    # Three values a row in dimension 1, as of chunks that were flattened.
    whole = draw((2, 3 * B, 7), noise(None), dim=1)
    for part in PARTS:
        rows = part.stop - part.start
        assert draw((2, 3 * rows, 7), noise(part), dim=1).equal(whole[:, 3 * part.start : 3 * part.stop])
