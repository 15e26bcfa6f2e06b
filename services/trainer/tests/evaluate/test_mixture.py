from typing import Any

import pytest
import torch

from latentforge.model.losses import StudentBatch
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.likelihood import evaluate_likelihood
from latentforge.trainer.evaluate.mixture import evaluate_mixture

K = 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_decoder": {"kind": "none"}},
        {"logit_features": {"kind": "linear", "width": 8}},
        {"induction": {"context": 2}},
        {"chunk_decoder": {"kind": "recurrent", "width": 8, "rank": 4}},
    ],
)
def test_of_a_deterministic_head_every_bound_is_the_likelihood(
    make_latent: Any, batches: list[StudentBatch], changes: dict[str, Any]
) -> None:
    model = make_latent(**changes)
    exact = evaluate_likelihood(model, batches)
    bounds = evaluate_mixture(model, batches, sizes=(1, 3))
    for bound in bounds.values():
        # Chunks in which a token is not counted are left out: the first of each, and two of the last sequence.
        kept = torch.tensor([i for s in range(3) for i in _whole_chunk_tokens(batches[s], exact, s)])
        torch.testing.assert_close(bound.nats, exact.nats[kept], atol=1e-4, rtol=0)
        assert bound.tokens.equal(exact.tokens[kept])
        assert bound.sequences.equal(exact.sequences[kept])
        assert bound.positions.equal(exact.positions[kept])


def _whole_chunk_tokens(batch: StudentBatch, exact: Any, sequence: int) -> list[int]:
    """Indices into ``exact`` of the tokens of a sequence's whole chunks."""
    valid = batch.valid[0]
    before = int((exact.sequences < sequence).sum())
    index_of = {int(t): before + n for n, t in enumerate(valid.nonzero()[:, 0])}
    chunks = [c for c in range(8) if valid[c * K : c * K + K].all()]
    return [index_of[c * K + k] for c in chunks for k in range(K)]


def test_of_an_energy_head_the_bound_falls_with_the_number_of_latents(
    make_latent: Any, batches: list[StudentBatch]
) -> None:
    # A latent of its own for each sample that matters: the logits depend on it alone.
    model = make_latent(head="energy", energy_noise_size=4, energy_blocks=1, chunk_decoder={"kind": "none"})
    bounds = evaluate_mixture(model, batches, sizes=(1, 8, 64))
    values = [bounds[n].mean().value for n in (1, 8, 64)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[2]
    again = evaluate_mixture(model, batches, sizes=(64,))
    assert again[64].nats.equal(bounds[64].nats)
    one_latent = evaluate_likelihood(model, batches)
    assert one_latent.mean().value == pytest.approx(values[0], rel=0.05)


def test_chunks_are_evenly_spread_over_the_sequences(make_latent: Any, batches: list[StudentBatch]) -> None:
    bound = evaluate_mixture(make_latent(), batches, sizes=(1,), num_chunks=6)[1]
    assert len(bound.nats) == 6 * K
    assert set(bound.sequences.tolist()) == {0, 1, 2}


def test_no_whole_chunk_is_an_error(make_latent: Any) -> None:
    batch = StudentBatch(torch.full((1, 8), 5), torch.zeros(1, 8, dtype=torch.bool))
    with pytest.raises(TrainerError, match="no chunk whose tokens are all counted"):
        evaluate_mixture(make_latent(), [batch])
