"""What answers cost, and that no request goes that could cost more than is allowed."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece
from latentforge.gateway.backends.costs import Costs, Price
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.errors import TeacherError
from tools.venice_server.control import Fault

MILLION = 1e6


def chat_ids(backend: Any) -> list[int]:
    ids: list[int] = backend.tokenizer.encode_chat([{"role": "user", "content": "abc"}], to_answer=True)
    return ids


async def generated(backend: Any, *, n: int = 1, max_tokens: int = 12) -> list[Piece]:
    prompt = np.array(chat_ids(backend), np.uint32)
    request = ContinuationRequest(prompt, max_tokens, 1.0, 1.0, 3, n, 20, (), chat=(("user", "abc"),))
    return [piece async for piece in backend.generate(request)]


def cost_of(venice: Any, prompt: int, completion: int) -> float:
    of_input, of_output = venice.control.price
    return float((of_input * prompt + of_output * completion) / MILLION)


async def test_an_answer_costs_what_the_list_says_for_the_tokens_that_venice_counts(backend: Any, venice: Any) -> None:
    assert backend.spent_usd == 0
    pieces = await generated(backend, n=2, max_tokens=5)
    made = sum(len(piece.token_ids) for piece in pieces)
    once = cost_of(venice, len(chat_ids(backend)), made)
    assert backend.spent_usd == pytest.approx(once)
    assert once > 0
    await generated(backend, n=2, max_tokens=5)
    assert backend.spent_usd == pytest.approx(2 * once)


async def test_a_refused_request_costs_nothing_and_an_answer_that_is_no_use_costs_all_the_same(
    backend: Any, venice: Any
) -> None:
    venice.control.faults.append(Fault(400, "no"))
    with pytest.raises(BackendError):
        await generated(backend)
    assert backend.spent_usd == 0
    # One that contradicts itself is dropped; one that cannot be read may have cost as much as was asked for.
    venice.control.edit = lambda answer: answer["choices"][0]["message"].update(content="other")
    await generated(backend, max_tokens=5)
    dropped = backend.spent_usd
    assert 0 < dropped <= cost_of(venice, len(chat_ids(backend)), 5)
    venice.control.edit = lambda answer: answer.pop("usage")
    with pytest.raises(BackendError, match="not as published"):
        await generated(backend, max_tokens=5)
    assert backend.spent_usd - dropped == pytest.approx(cost_of(venice, len(chat_ids(backend)), 5))


async def test_beyond_the_limit_nothing_is_sent_and_the_setting_is_named(make_backend: Any, venice: Any) -> None:
    backend = make_backend(venice)
    await backend.load()
    most = cost_of(venice, len(chat_ids(backend)), 12)
    limited = make_backend(venice, venice_max_usd=1.5 * most)
    await limited.load()
    while limited.spent_usd <= 0.5 * most:
        await generated(limited)
    asked = len(venice.control.bodies)
    with pytest.raises(BackendError) as caught:
        await generated(limited)
    assert caught.value.kind is FailureKind.MISCONFIGURED
    message = f"VENICE_MAX_USD={1.5 * most:g} USD: {limited.spent_usd:.6f} are spent since the gateway started"
    assert str(caught.value).startswith(message)
    assert len(venice.control.bodies) == asked
    # A shorter one still fits.
    await generated(limited, max_tokens=1)
    assert limited.spent_usd <= 1.5 * most


async def test_requests_that_are_under_way_count_with_all_that_they_may_cost(make_backend: Any, venice: Any) -> None:
    backend = make_backend(venice)
    await backend.load()
    most = cost_of(venice, len(chat_ids(backend)), 12)
    limited = make_backend(venice, venice_max_usd=2.5 * most)
    await limited.load()
    results = await asyncio.gather(*(generated(limited) for _ in range(4)), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BackendError)]
    assert len(failed) == 2
    for error in failed:
        assert error.kind is FailureKind.BUSY
        assert error.retry_after is not None
        assert "requests that are under way may take the rest" in str(error)
    assert limited.spent_usd <= 2.5 * most


async def test_a_limit_that_cannot_be_kept_is_refused_at_the_start(make_backend: Any, venice: Any) -> None:
    venice.control.price = None
    with pytest.raises(BackendError, match=r"lists no price for VENICE_MODEL=local-teacher.*VENICE_MAX_USD"):
        await make_backend(venice, venice_max_usd=1).load()
    backend = make_backend(venice)
    await backend.load()
    await generated(backend)
    assert backend.spent_usd == 0


async def test_callers_see_the_sum_and_a_limit_that_is_reached(run_gateway_on: Callable[..., Any], venice: Any) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="abc")])
    async with run_gateway_on(venice, venice_max_usd=0.00002) as client:
        [answer async for answer in client.generate(pb.GenerateRequest(chat=chat, max_tokens=4, top_k=2))]
        assert 0 < (await client.cache_stats()).spent_usd <= 0.00002
        with pytest.raises(TeacherError, match=r"VENICE_MAX_USD=2e-05 USD: .* are spent") as caught:
            [answer async for answer in client.generate(pb.GenerateRequest(chat=chat, max_tokens=1000))]
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_a_price_is_for_a_million_tokens_and_the_sum_is_of_every_bill() -> None:
    assert Price(2.0, 10.0).cost(500_000, 100_000) == 2.0
    told: list[float] = []
    costs = Costs(None, "VENICE_MAX_USD", told.append)
    with costs.request(5.0) as bill:
        bill.sent()
        bill.answered(3.0)
    with contextlib.suppress(BackendError), costs.request(5.0) as bill:
        bill.sent()
        bill.answered(1.0)
        raise BackendError("the answer cannot be read")
    assert costs.spent == sum(told) == 4.0


def test_a_try_that_got_no_answer_costs_the_most_and_another_must_fit_the_limit() -> None:
    costs = Costs(2.5, "VENICE_MAX_USD")
    with costs.request(1.0) as bill:
        bill.trying()
        bill.sent()
        bill.refused()
        bill.trying()
        bill.sent()
        bill.trying()
        bill.sent()
        with pytest.raises(BackendError, match="VENICE_MAX_USD"):
            bill.trying()
    assert costs.spent == 2.0
    # What was held for it is free again.
    with costs.request(0.5):
        pass
    assert costs.spent == 2.0


async def test_requests_that_are_left_after_they_were_sent_cost_the_most(make_backend: Any, venice: Any) -> None:
    backend = make_backend(venice)
    await backend.load()
    most = cost_of(venice, len(chat_ids(backend)), 12)
    limited = make_backend(venice, venice_max_usd=2.5 * most)
    await limited.load()
    venice.control.delay = 30.0
    for count in (1, 2):
        asked = len(venice.control.bodies)
        leaving = asyncio.create_task(generated(limited))
        while len(venice.control.bodies) == asked:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert limited.spent_usd == pytest.approx(count * most)
    with pytest.raises(BackendError, match="VENICE_MAX_USD"):
        await generated(limited)


async def test_every_try_that_got_no_answer_costs_the_most(make_backend: Any, venice: Any) -> None:
    backend = make_backend(venice, venice_timeout_seconds=0.3, venice_attempts=2)
    await backend.load()
    most = cost_of(venice, len(chat_ids(backend)), 12)
    venice.control.delay = 5.0
    with pytest.raises(BackendError, match="did not answer within") as caught:
        await generated(backend)
    assert caught.value.kind is FailureKind.TOO_SLOW
    assert backend.spent_usd == pytest.approx(2 * most)
