import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.generations import Text, choose_prompts, evaluate_generations, score_texts


def constant_score(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Every token has probability exp(-id)."""
    return [-np.array(ids, dtype=np.float32) for ids in texts]


def test_texts_are_scored_behind_their_prompts_with_the_end_but_counted_without() -> None:
    prompts = torch.tensor([[100, 100], [200, 200], [250, 250]])
    texts = [Text([1, 2, 3, 4], False), Text([5], True), Text([], True)]
    found = score_texts(prompts, texts, 7, constant_score)
    assert found.teacher_nats is not None
    assert found.teacher_nats.value == pytest.approx((1 + 2 + 3 + 4 + 5 + 7 + 7) / 7)
    assert found.mean_length == pytest.approx(5 / 3)
    assert found.distinct_3 == 1
    assert (found.repetition, found.repetition_interval) == (0, (0, 0))
    assert score_texts(prompts, texts, 7, None).teacher_nats is None


def test_repetition_has_the_interval_of_its_prompts() -> None:
    prompts = torch.zeros(41, 2, dtype=torch.int64)
    loops, fresh = [1] * 8, list(range(8))
    texts = [Text(ids, False) for ids in (*[loops] * 10, *[fresh] * 30)] + [Text([], True)]
    found = score_texts(prompts, texts, 7, None)
    share = 10 * 7 / (40 * 8)
    assert found.repetition == pytest.approx(share)
    # One prompt in four loops, for 7 of 8 tokens: a binomial of 40.
    half = 1.96 * math.sqrt(0.25 * 0.75 / 40) * 7 / 8
    assert found.repetition_interval == pytest.approx((share - half, share + half), abs=0.03)
    assert score_texts(prompts[:2], [texts[0], texts[-1]], 7, None).repetition_interval is None


@pytest.mark.parametrize("kind", ["latent", "token-level"])
def test_a_model_writes_at_every_temperature(kind: str, make_latent: Any, token_level: Any, packed: PackedData) -> None:
    model = make_latent() if kind == "latent" else token_level
    prompts = choose_prompts(packed, 4, 8, 12)
    seen: list[Sequence[Sequence[int]]] = []

    def score(given: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        assert given == prompts.prompts.tolist()
        seen.append(texts)
        return constant_score(given, texts)

    found = evaluate_generations(model, prompts.prompts, 12, score=score)
    assert list(found) == [1.0, 0.7, 0.0]
    assert seen[0] != seen[1] != seen[2]
    assert all(1 <= len(ids) <= 12 for texts in seen for ids in texts)
    assert all(math.isfinite(s.teacher_nats.value) for s in found.values() if s.teacher_nats)
    again = evaluate_generations(model, prompts.prompts, 12, score=score)
    assert again == found


def test_prompts_are_beginnings_of_documents_first(packed: PackedData) -> None:
    chosen = choose_prompts(packed, 20, 8, 12)
    documents = {tuple(ids) for ids in packed.document_beginnings(20) if len(ids) == 20}
    assert chosen.prompts.shape == (20, 8)
    assert chosen.references.shape == (20, 12)
    assert {tuple(row) for row in torch.cat([chosen.prompts, chosen.references], 1).tolist()} <= documents


def test_sequences_fill_up_where_documents_are_too_few(packed: PackedData) -> None:
    few = packed.part(3, 40)
    num_documents = sum(len(ids) == 32 for ids in few.document_beginnings(32))
    chosen = choose_prompts(few, num_documents + 5, 20, 12)
    assert len(chosen.prompts) == num_documents + 5
    assert not (chosen.references == few.meta.eos_id).any()


def test_prompts_begin_with_bos_where_sequences_do(bos_packed: PackedData) -> None:
    # More than there are documents, so that some are beginnings of sequences.
    chosen = choose_prompts(bos_packed, 100, 8, 12)
    assert len(chosen.prompts) > sum(len(ids) >= 19 for ids in bos_packed.document_beginnings(20))
    assert (chosen.prompts[:, 0] == 2).all()
    assert not (torch.cat([chosen.prompts[:, 1:], chosen.references], 1) == 2).any()


def test_no_text_that_is_long_enough_is_an_error(packed: PackedData) -> None:
    with pytest.raises(TrainerError, match=r"fewer than 2 texts of 64 \+ 5000 tokens"):
        choose_prompts(packed, 4, 64, 5000)
