import random
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.decoding import scoring
from latentforge.model.decoding.batch import TextLogprobs
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.decoding.scoring import score_pieces
from latentforge.model.heads import EnergyHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, logprobs_of
from latentforge.model.token_level import TokenLevelModel

AnyModel = LatentModel | TokenLevelModel
V, PAD = 64, 1


def run(pieces: Generator[None, None, TextLogprobs]) -> tuple[TextLogprobs, int]:
    """What it gives, and how many pieces of work it was."""
    count = 0
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value, count
        count += 1


def text_of(length: int) -> list[int]:
    rng = random.Random(length)
    return [rng.randrange(2, 12) for _ in range(length)]


def reference(model: AnyModel, ids: list[int]) -> Tensor:
    """Log probabilities [L, V] of a text of whole chunks, by the model as a whole."""
    with torch.no_grad():
        if isinstance(model, TokenLevelModel):
            logits = model.logits(torch.tensor([ids]))[0]
        else:
            tokens = torch.tensor([ids]).unflatten(1, (-1, model.chunk_size))
            logits = model.logits(tokens, torch.Generator().manual_seed(0)).logits.flatten(0, 2)
    return logits.index_fill(-1, torch.tensor(PAD), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("at_once", [256, 8])
def test_scores_are_the_teacher_forced_log_probabilities(
    model: AnyModel, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(scoring, "_CHUNKS_AT_ONCE", 64 if at_once == 256 else 3)
    for length in (1, 3, 8, 30):
        text = text_of(length)
        scores, _ = run(score_pieces(model, text, likeliest=V))
        pads = -length % model.chunk_size
        wanted = reference(model, [PAD] * pads + text)[pads:]
        assert len(scores.logprobs) == len(scores.likeliest) == length
        drawn = wanted.gather(1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(scores.logprobs), drawn, rtol=0, atol=2e-4)
        for best, row in zip(scores.likeliest, wanted, strict=True):
            ids, values = zip(*best, strict=True)
            assert list(values) == sorted(values, reverse=True)
            torch.testing.assert_close(torch.tensor(values), row[list(ids)], rtol=0, atol=2e-4)


def test_what_was_written_is_scored_as_it_was_drawn(model: AnyModel) -> None:
    decoding = batch_decoding(model, 1)
    text = decoding.open(text_of(8), SamplingParams(seed=1), logprobs=0)
    while decoding.prefill([text], 100):
        pass
    chunks = [decoding.step([text])[0] for _ in range(3)]
    written = [i for chunk in chunks for i in chunk.token_ids]
    drawn = [value for chunk in chunks for value in chunk.logprobs or []]
    scores, _ = run(decoding.score(text_of(8) + written))
    is_same = scores.logprobs[8:] == pytest.approx(drawn, abs=2e-4)
    # An energy head's noise is another when it writes, and always the same when a text is scored.
    assert is_same is not (isinstance(model, LatentModel) and isinstance(model.student.head, EnergyHead))
    assert run(decoding.score(text_of(8) + written))[0] == scores
    assert scores.likeliest == [[]] * (8 + len(written))


def test_work_is_done_in_bounded_pieces(make_any: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_CHUNKS_AT_ONCE", 5)
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", 8)
    model = make_any("induction")
    most: list[int] = []

    def counted(logits: Tensor, ids: Tensor, num_likeliest: int) -> tuple[Tensor, Tensor, Tensor]:
        most.append(len(logits))
        return logprobs_of(logits, ids, num_likeliest)

    monkeypatch.setattr(scoring, "logprobs_of", counted)
    # 16 chunks: 4 passes of the backbone, of 5, 5, 5 and 1 chunks, and output layers of 2 chunks: 3 + 3 + 3 + 1.
    assert run(score_pieces(model, text_of(62)))[1] == 4 + 10
    assert max(most) == 8
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 4 * V)
    assert run(score_pieces(model, text_of(62)))[1] == 4 + 16


def test_texts_that_cannot_be_scored_are_refused(make_any: Callable[[str], AnyModel]) -> None:
    model = make_any("gru-window1")
    with pytest.raises(ValueError, match="no token to score"):
        run(score_pieces(model, []))
    with pytest.raises(ValueError, match="the text has 65 tokens, but this model reads at most 64"):
        run(score_pieces(model, [5] * 65))
    with pytest.raises(ValueError, match="id 64 is not in the vocabulary"):
        run(score_pieces(model, [5, 64]))
    assert len(run(score_pieces(model, [5] * 64))[0].logprobs) == 64
