import math
from typing import Any

import numpy as np
import pytest
import torch

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate import likelihood as module
from latentforge.trainer.evaluate.likelihood import evaluate_likelihood, teacher_likelihood


def slow_logprobs(model: LatentModel | TokenLevelModel, tokens: torch.Tensor) -> torch.Tensor:
    """Log probabilities [L, V] for every token of one sequence, from the model's own teacher-forced logits."""
    with torch.no_grad():
        if isinstance(model, TokenLevelModel):
            logits = model.logits(tokens[None])[0]
        else:
            logits = model.logits(tokens.view(1, -1, model.chunk_size)).logits.flatten(0, 2)
    return logits.double().log_softmax(-1)


@pytest.fixture(params=["latent", "token-level"])
def model(request: pytest.FixtureRequest, make_latent: Any, token_level: TokenLevelModel) -> Any:
    return make_latent() if request.param == "latent" else token_level


@pytest.mark.parametrize("logits_at_once", [2**22, 1])
def test_every_figure_equals_a_token_by_token_reference(
    model: Any,
    batches: list[StudentBatch],
    known_rows: Any,
    logits_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE_CPU", logits_at_once)
    found: Any = evaluate_likelihood(model, batches)
    at = 0
    for index, batch in enumerate(batches):
        tokens = batch.tokens[0]
        ours, teacher = slow_logprobs(model, tokens), known_rows.dense(tokens).double()
        for i in batch.valid[0].nonzero()[:, 0].tolist():
            token = int(tokens[i])
            assert (found.sequences[at], found.tokens[at], found.positions[at]) == (index, token, i % model.chunk_size)
            assert found.nats[at].item() == pytest.approx(-ours[i, token].item(), abs=1e-4)
            assert found.confidence[at].item() == pytest.approx(ours[i].max().exp().item(), abs=1e-5)
            assert found.correct[at] == (ours[i].argmax() == token)
            assert found.teacher_nats[at].item() == pytest.approx(-teacher[i, token].item(), abs=1e-4)
            # Buckets: the top 4, the text's token, all others.
            top = {known_rows.best(int(tokens[i - 1]), rank) for rank in range(4)} | {token}
            rest = [v for v in range(260) if v not in top]
            p = [teacher[i, v].exp().item() for v in top] + [teacher[i, rest].exp().sum().item()]
            q = [ours[i, v].exp().item() for v in top] + [ours[i, rest].exp().sum().item()]
            kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert found.kl[at].item() == pytest.approx(kl, abs=1e-3)
            at += 1
    assert at == len(found.nats) == 31 + 31 + 26


def test_a_batch_of_several_sequences_gives_the_same_tokens(model: Any, batches: list[StudentBatch]) -> None:
    alone = [StudentBatch(b.tokens, b.valid) for b in batches]
    together = StudentBatch(torch.cat([b.tokens for b in batches]), torch.cat([b.valid for b in batches]))
    one, all_at_once = evaluate_likelihood(model, alone), evaluate_likelihood(model, [together])
    torch.testing.assert_close(all_at_once.nats, one.nats, atol=1e-5, rtol=1e-5)
    assert all_at_once.sequences.equal(one.sequences)
    assert all_at_once.positions.equal(one.positions)
    assert all_at_once.kl is None


def test_positions_in_the_chunk_average_to_the_total(make_latent: Any, batches: list[StudentBatch]) -> None:
    found = evaluate_likelihood(make_latent(), batches)
    sizes = np.bincount(found.positions)
    by_position = found.by_position()
    assert len(by_position) == 4
    mean = sum(n * e.value for n, e in zip(sizes, by_position, strict=True)) / sizes.sum()
    assert found.mean().value == pytest.approx(mean)
    assert found.mean().low <= found.mean().value <= found.mean().high


def test_what_is_not_valid_changes_nothing(make_latent: Any, batches: list[StudentBatch]) -> None:
    """Pads on the left are context, and what follows is not counted."""
    model = make_latent()
    batch = batches[0]
    padded = torch.cat([torch.full((1, 4), 1), batch.tokens[:, :28]], 1)
    valid = torch.cat([torch.zeros(1, 4, dtype=torch.bool), batch.valid[:, :28]], 1)
    found = evaluate_likelihood(model, [StudentBatch(padded, valid)])
    assert found.tokens.equal(batch.tokens[0, 1:28])
    reference = slow_logprobs(model, padded[0])[5:].gather(1, found.tokens[:, None])[:, 0]
    torch.testing.assert_close(found.nats, -reference, atol=1e-4, rtol=0)


def test_a_token_without_a_row_has_no_kl(make_latent: Any, batches: list[StudentBatch]) -> None:
    kd = batches[0].kd
    assert kd is not None
    kd.has_row[0, 5] = False
    kd.tail_mass[0, 5] = torch.nan
    found: Any = evaluate_likelihood(make_latent(), batches)
    assert found.kl.isnan().nonzero()[:, 0].tolist() == [4]
    expected = found.kl[~found.kl.isnan()].mean().item()
    assert found.mean_kl().value == pytest.approx(expected, rel=1e-5)
    assert found.mean_teacher().value == pytest.approx(found.teacher_nats.nanmean().item(), rel=1e-5)


def test_the_teachers_own_likelihood_and_confidence(batches: list[StudentBatch], known_rows: Any) -> None:
    found: Any = teacher_likelihood(batches)
    dense = torch.cat([known_rows.dense(b.tokens[0])[b.valid[0]] for b in batches])
    torch.testing.assert_close(found.nats, -dense.gather(1, found.tokens[:, None])[:, 0].double(), atol=1e-5, rtol=0)
    assert found.confidence.tolist() == pytest.approx([0.5] * len(found.tokens))
    assert found.correct.equal(dense.argmax(1) == found.tokens)
    assert found.calibration_error() == pytest.approx(abs(found.correct.double().mean().item() - 0.5), abs=1e-6)


def test_bits_per_byte_of_a_known_text(tokenizer: TextTokenizer, token_level: TokenLevelModel) -> None:
    """The first token is not counted, and neither is its byte; the special one is counted and has none."""
    ids = [*tokenizer.encode_texts(["abé def"])[0], 0, *tokenizer.encode_texts(["xyz"])[0], 0]
    tokens = torch.tensor([ids, ids[::-1]])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    valid[:, 0] = False
    found = evaluate_likelihood(token_level, [StudentBatch(tokens, valid)])
    # "bé def" is 7 bytes and "xyz" 3; the other way round the first, uncounted one is the special token.
    estimate = found.bits_per_byte(tokenizer.num_bytes)
    assert estimate.value == pytest.approx(found.nats.sum().item() / math.log(2) / (10 + 11))
    assert estimate.low <= estimate.value <= estimate.high


def test_bytes_of_parts_of_characters_and_of_special_tokens(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode_texts(["é€"])[0]
    assert len(ids) == 5
    assert [tokenizer.num_bytes(ids[:n]) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert tokenizer.num_bytes([0, 1, 2, 3]) == 0


def test_sequences_that_do_not_fit_the_model_are_refused(make_latent: Any, packed: PackedData) -> None:
    def batch(length: int) -> StudentBatch:
        return StudentBatch(torch.full((2, length), 5), torch.ones(2, length, dtype=torch.bool))

    with pytest.raises(TrainerError, match="sequences of 30 tokens are no multiple of K=4; pack the data with --k 4"):
        evaluate_likelihood(make_latent(), [batch(30)])
    with pytest.raises(TrainerError, match=r"the model's context is 128; .*--sequence-length 128 or less"):
        evaluate_likelihood(make_latent(), [batch(132)])
