from typing import Any

import numpy as np
import pytest
import torch

from latentforge.gateway.backends.base import ContinuationRequest
from latentforge.gateway.backends.local.generation import draw
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.tokenizer import TextTokenizer


async def continued(backend: Any, **changes: Any) -> dict[int, tuple[list[int], str, int]]:
    """Ids, text and finish reason of each continuation."""
    defaults: dict[str, Any] = {
        "prompt_ids": np.array([70, 71, 72], np.uint32),
        "max_tokens": 24,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 3,
        "n": 1,
        "top_k": 0,
        "stop": (),
    }
    ids: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    reasons: dict[int, int] = {}
    async for piece in backend.generate(ContinuationRequest(**(defaults | changes))):
        assert piece.index not in reasons, "a piece after the last one"
        ids.setdefault(piece.index, []).extend(piece.token_ids)
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        if piece.finish_reason:
            reasons[piece.index] = piece.finish_reason
    return {i: (ids[i], texts[i], reasons[i]) for i in ids}


async def test_a_seed_reproduces_and_another_differs(backend: Any) -> None:
    first, again, other = [await continued(backend, n=2, seed=seed) for seed in (3, 3, 4)]
    assert first == again
    assert first != other
    assert first[0] != first[1]
    # What a continuation is does not depend on how many others there are.
    assert (await continued(backend, n=1, seed=3))[0] == first[0]


async def test_without_a_seed_two_calls_differ(backend: Any) -> None:
    assert await continued(backend, seed=None) != await continued(backend, seed=None)


async def test_greedy_takes_the_most_probable_token_of_a_full_forward_pass(
    backend: Any, random_teacher: Any, reference: Any
) -> None:
    ((ids, _, _),) = (await continued(backend, temperature=0.0)).values()
    logprobs = reference(random_teacher, [70, 71, 72, *ids])
    assert ids == logprobs[2:].argmax(1).tolist()


async def test_greedy_is_the_limit_of_a_low_temperature_and_of_a_small_nucleus(backend: Any) -> None:
    greedy = await continued(backend, temperature=0.0)
    assert await continued(backend, temperature=1e-30) == greedy
    assert await continued(backend, top_p=1e-6) == greedy


async def test_a_stop_string_ends_the_text_before_it_wherever_it_falls(backend: Any) -> None:
    ((ids, text, reason),) = (await continued(backend, max_tokens=60, temperature=1.5, seed=11)).values()
    assert reason == pb.FINISH_REASON_LENGTH
    assert len(text) > 24
    for start, length in ((3, 1), (10, 4), (18, 3)):
        stop = text[start : start + length]
        before = text[: text.find(stop)]
        ((stopped_ids, stopped, reason),) = (
            await continued(backend, max_tokens=60, temperature=1.5, seed=11, stop=("absent", stop))
        ).values()
        assert stopped == before
        assert reason == pb.FINISH_REASON_STOP
        assert stopped_ids == ids[: len(stopped_ids)]
        assert len(stopped_ids) < len(ids)


async def test_a_special_token_can_be_a_stop_string(backend: Any) -> None:
    without = await continued(backend, n=8, max_tokens=60, temperature=50.0)
    drawn = [(index, token_id) for index, (ids, _, _) in without.items() for token_id in ids if token_id in (1, 2, 3)]
    index, special = drawn[0]
    stop = backend.tokenizer.decode([special])
    stopped = await continued(backend, n=8, max_tokens=60, temperature=50.0, stop=(stop,))
    ids, text, reason = stopped[index]
    assert ids == without[index][0][: without[index][0].index(special) + 1]
    assert reason == pb.FINISH_REASON_STOP
    assert without[index][1].startswith(text)


async def test_text_that_only_looks_like_a_special_token_ends_nothing(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((ids, text, _),) = (without := await continued(backend, max_tokens=60, temperature=1.5, seed=11)).values()
    special = next(i for i in sorted(backend.tokenizer.special_ids) if i not in ids)
    monkeypatch.setattr(TextTokenizer, "special_id", lambda _, word: special if word == text[10:14] else None)
    assert await continued(backend, max_tokens=60, temperature=1.5, seed=11, stop=(text[10:14],)) == without


async def test_what_ends_an_answer_ends_a_continuation(backend: Any) -> None:
    without = await continued(backend, n=8, max_tokens=60, temperature=50.0)
    index, end = next((i, token) for i, (ids, _, _) in without.items() for token in ids[5:] if token > 3)
    ids, text, reason = (await continued(backend, n=8, max_tokens=60, temperature=50.0, end_ids=frozenset({end})))[
        index
    ]
    assert ids == without[index][0][: without[index][0].index(end) + 1]
    assert reason == pb.FINISH_REASON_STOP
    assert without[index][1].startswith(text)


async def test_continuations_end_one_by_one_and_the_rest_goes_on(backend: Any) -> None:
    answers = await continued(backend, n=8, max_tokens=60, temperature=50.0)
    ended = {i for i, (ids, _, _) in answers.items() if ids[-1] == 0}
    assert 0 < len(ended) < 8, "choose a seed that shows both"
    for index, (ids, _, reason) in answers.items():
        assert 0 not in ids[:-1]
        assert reason == (pb.FINISH_REASON_STOP if index in ended else pb.FINISH_REASON_LENGTH)
        assert len(ids) == 60 or index in ended
    alone = (await continued(backend, n=1, max_tokens=60, temperature=50.0))[0]
    assert alone == answers[0]


def test_drawing_follows_the_distribution_and_its_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    full = torch.bincount(torch.tensor([draw(logits, 1.0, 1.0, generator) for _ in range(1000)]), minlength=4) / 1000
    torch.testing.assert_close(full, logits.exp(), atol=0.06, rtol=0)
    nucleus = torch.bincount(torch.tensor([draw(logits, 1.0, 0.6, generator) for _ in range(1000)]), minlength=4) / 1000
    torch.testing.assert_close(nucleus, torch.tensor([0.625, 0.375, 0, 0]), atol=0.06, rtol=0)


def test_the_nucleus_never_loses_its_first_token() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw(torch.tensor([3.0, 9.0, 1.0]), 1.0, 1e-12, generator) == 1


@pytest.mark.parametrize("n", [1, 4])
async def test_max_tokens_counts_each_continuation(backend: Any, n: int) -> None:
    answers = await continued(backend, n=n, max_tokens=1)
    assert sorted(answers) == list(range(n))
    assert all(len(ids) == 1 for ids, _, _ in answers.values())
