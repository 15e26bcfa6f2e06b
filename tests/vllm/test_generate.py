"""What vLLM writes, with its rows, through the gateway."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.wire import rows_from_proto

from .conftest import TOLERANCE, Reference

# Whichever test comes first waits for the server.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPT = [104, 105, 106, 2, 107, 108]


@dataclass
class Continuation:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    rows: list[SparseRows] = field(default_factory=list)
    finish_reason: int = 0


async def generate(client: TeacherClient, **arguments: Any) -> dict[int, Continuation]:
    defaults: dict[str, Any] = {
        "token_ids": pb.TokenIds(ids=PROMPT),
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": 1,
        "top_k": 5,
        "logprob_dtype": pb.LOGPROB_DTYPE_FLOAT32,
    }
    continuations: dict[int, Continuation] = defaultdict(Continuation)
    async for answer in client.generate(pb.GenerateRequest(**(defaults | arguments))):
        of = continuations[answer.index]
        assert of.finish_reason == pb.FINISH_REASON_UNSPECIFIED
        of.token_ids += answer.token_ids
        of.text += answer.text
        of.finish_reason = answer.finish_reason
        if answer.HasField("rows"):
            of.rows.append(rows_from_proto(answer.rows))
    return continuations


async def test_rows_are_those_that_score_gives_for_the_text(client: TeacherClient, reference: Reference) -> None:
    continuations = await generate(client, n=3)
    assert set(continuations) == {0, 1, 2}
    for continuation in continuations.values():
        (rows,) = continuation.rows
        assert rows.first_position == len(PROMPT)
        assert len(rows) == len(continuation.token_ids)
        whole = PROMPT + continuation.token_ids
        scored = await client.score(whole, 5, "float32")
        start = len(PROMPT) - 1
        assert np.abs(rows.realised_logprobs - scored.realised_logprobs[start:]).max() < TOLERANCE
        assert np.abs(rows.logprobs - scored.logprobs[start:]).max() < TOLERANCE
        assert np.abs(rows.tail_mass - scored.tail_mass[start:]).max() < TOLERANCE
        reference.check_at(rows, reference.logprobs(whole)[start:], continuation.token_ids)
        # The API for continuations gives no ranks beyond k.
        outside = scored.realised_ranks[start:] > 20
        assert (rows.realised_ranks[outside] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
async def test_rows_are_raw_at_every_temperature(
    client: TeacherClient, reference: Reference, temperature: float
) -> None:
    for continuation in (await generate(client, temperature=temperature, top_p=0.8)).values():
        whole = PROMPT + continuation.token_ids
        reference.check_at(continuation.rows[0], reference.logprobs(whole)[len(PROMPT) - 1 :], continuation.token_ids)


async def test_greedy_takes_the_most_probable(client: TeacherClient) -> None:
    (continuation,) = (await generate(client, temperature=0.0, seed=9)).values()
    assert continuation.rows[0].ids[:, 0].tolist() == continuation.token_ids


async def test_continuations_differ_and_do_not_depend_on_how_many_there_are(client: TeacherClient) -> None:
    four = await generate(client, n=4, max_tokens=8)
    assert len({tuple(c.token_ids) for c in four.values()}) == 4
    two = await generate(client, n=2, max_tokens=8)
    assert [two[i].token_ids for i in range(2)] == [four[i].token_ids for i in range(2)]
    others = await generate(client, n=4, max_tokens=8, seed=2)
    assert not {tuple(c.token_ids) for c in four.values()} & {tuple(c.token_ids) for c in others.values()}


async def test_the_length_is_kept_and_no_rows_come_unasked(client: TeacherClient) -> None:
    for continuation in (await generate(client, n=2, max_tokens=3, top_k=0)).values():
        assert len(continuation.token_ids) <= 3
        assert continuation.rows == []


async def test_an_end_of_text_is_among_the_tokens_but_not_in_the_text(client: TeacherClient) -> None:
    continuations = await generate(client, n=48, max_tokens=60, temperature=1.5)
    ended = [c for c in continuations.values() if c.finish_reason == pb.FINISH_REASON_STOP]
    assert ended
    for continuation in ended:
        assert continuation.token_ids.index(0) == len(continuation.token_ids) - 1
        assert len(continuation.rows[0]) == len(continuation.token_ids)
        assert "endoftext" not in continuation.text
    for continuation in continuations.values():
        if continuation.finish_reason == pb.FINISH_REASON_LENGTH:
            assert len(continuation.token_ids) == 60
            assert 0 not in continuation.token_ids


async def test_a_stop_string_ends_the_text_before_it(client: TeacherClient) -> None:
    (free,) = (await generate(client, max_tokens=60, temperature=1.5, seed=7)).values()
    at, stop = next((i, c) for i, c in enumerate(free.text) if i > 2 and "!" <= c <= "~")
    (stopped,) = (await generate(client, max_tokens=60, temperature=1.5, seed=7, stop=["no such text", stop])).values()
    assert stopped.finish_reason == pb.FINISH_REASON_STOP
    assert stopped.text == free.text[: free.text.index(stop)]
    assert at >= len(stopped.text)
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert await client.detokenize(stopped.token_ids[-1:]) == stop


async def test_a_special_token_can_be_a_stop_string(client: TeacherClient) -> None:
    continuations = await generate(client, n=32, max_tokens=100, temperature=2.0, stop=["<|im_end|>"])
    ended = [c for c in continuations.values() if 3 in c.token_ids]
    assert ended
    for continuation in ended:
        assert continuation.finish_reason == pb.FINISH_REASON_STOP
        assert continuation.token_ids.index(3) == len(continuation.token_ids) - 1
        assert "im_end" not in continuation.text
