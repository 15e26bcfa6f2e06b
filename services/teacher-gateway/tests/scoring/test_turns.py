"""Batches and turns across callers, through the scorer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.cache import NoCache
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.callers import Caller, calling_as
from latentforge.gateway.scoring.dispatcher import ScoringLimits
from latentforge.gateway.scoring.inflight import QueueFullError
from latentforge.gateway.scoring.scorer import Scorer

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
A, B = Caller("a"), Caller("b")


def ids_of(seed: int, length: int = 12) -> Any:
    return np.random.default_rng(seed).integers(0, 300, length).astype(np.uint32)


def scorer_of(backend: Any, metrics: Metrics | None = None, **changes: int) -> Scorer:
    limits = {"batch_tokens": 240, "tokens_in_flight": 2400, "queued_tokens": 10_000, "queued_sequences": 1000}
    metrics = metrics or Metrics()
    cache = GuardedCache(NoCache(), metrics, max_queued_bytes=1 << 20)
    return Scorer(backend, cache, metrics, ScoringLimits(**(limits | changes)))


def asked(scorer: Scorer, caller: Caller, ids: Any) -> "asyncio.Task[Any]":
    with calling_as(caller):
        return asyncio.create_task(scorer.score(ids, 4, "float16"))


def all_queued(backend: Any, scorer: Scorer, tokens: int) -> bool:
    """But for those that the backend has already, which has begun."""
    return (
        bool(backend.scored)
        and sum(len(ids) for batch in backend.scored for ids in batch) + scorer.queued_tokens == tokens
    )


async def test_what_waits_is_batched_across_callers(backend: Any, eventually: Eventually) -> None:
    scorer = scorer_of(backend)
    backend.gate.clear()
    scores = [asked(scorer, Caller(f"client {i % 8}"), ids_of(i)) for i in range(1)]
    await eventually(lambda: len(backend.scored) == 1)
    # One by one, as they come over a network.
    for i in range(1, 48):
        scores.append(asked(scorer, Caller(f"client {i % 8}"), ids_of(i)))
        await asyncio.sleep(0)
    await eventually(lambda: scorer.queued_tokens == 47 * 12)
    assert len(backend.scored) == 1
    backend.gate.set()
    await asyncio.gather(*scores)
    assert [len(batch) for batch in backend.scored] == [1, 20, 20, 7]


async def test_a_small_question_waits_for_no_batch_but_the_one_that_has_begun(
    backend: Any, eventually: Eventually
) -> None:
    scorer = scorer_of(backend)
    backend.gate.clear()
    large = [asked(scorer, A, ids_of(i, 60)) for i in range(40)]
    await eventually(lambda: all_queued(backend, scorer, 40 * 60))
    small = asked(scorer, B, ids_of(100, 8))
    await eventually(lambda: all_queued(backend, scorer, 40 * 60 + 8))
    backend.gate.set()
    await small
    assert ids_of(100, 8).tolist() in backend.scored[1]
    await asyncio.gather(*large)
    assert len(backend.scored) <= 12


async def test_who_joins_a_question_of_a_long_queue_has_it_at_his_own_turn(
    backend: Any, eventually: Eventually
) -> None:
    scorer = scorer_of(backend)
    backend.gate.clear()
    large = [asked(scorer, A, ids_of(i, 60)) for i in range(40)]
    await eventually(lambda: all_queued(backend, scorer, 40 * 60))
    joined = asked(scorer, B, ids_of(39, 60))
    await asyncio.sleep(0.01)
    backend.gate.set()
    await joined
    assert ids_of(39, 60).tolist() in backend.scored[1]
    await asyncio.gather(*large)
    assert sum(map(len, backend.scored)) == 40


async def test_when_the_queue_is_full_he_who_filled_it_gives_way(backend: Any, eventually: Eventually) -> None:
    scorer = scorer_of(backend, batch_tokens=12, tokens_in_flight=12, queued_tokens=60)
    backend.gate.clear()
    many = [asked(scorer, A, ids_of(0))]
    await eventually(lambda: len(backend.scored) == 1)
    many += [asked(scorer, A, ids_of(i)) for i in range(1, 6)]
    await eventually(lambda: scorer.queued_tokens == 60)
    with pytest.raises(QueueFullError, match="MAX_QUEUED_TOKENS"):
        await asked(scorer, A, ids_of(50))
    other = asked(scorer, B, ids_of(60))
    with pytest.raises(QueueFullError, match="MAX_QUEUED_TOKENS"):
        await many[5]
    backend.gate.set()
    await asyncio.gather(other, *many[:5])
    # And what gave way can be asked again.
    assert (await asked(scorer, A, ids_of(5))).rows.top_k == 4


async def test_who_has_left_a_question_has_no_part_in_it_any_more(backend: Any, eventually: Eventually) -> None:
    metrics = Metrics()
    scorer = scorer_of(backend, metrics, batch_tokens=12, tokens_in_flight=12, queued_tokens=60)
    value = metrics.registry.get_sample_value
    backend.gate.clear()
    many = [asked(scorer, A, ids_of(0))]
    await eventually(lambda: len(backend.scored) == 1)
    many += [asked(scorer, A, ids_of(i)) for i in range(1, 6)]
    await eventually(lambda: scorer.queued_tokens == 60)
    # Each twice, of which he leaves one first.
    visits = [asked(scorer, B, ids_of(i)) for i in range(1, 6) for _ in range(2)]
    await eventually(lambda: value("gateway_queue_callers") == 2)
    for half in (visits[::2], visits[1::2]):
        assert value("gateway_queue_callers") == 2
        for visit in half:
            visit.cancel()
        await asyncio.gather(*half, return_exceptions=True)
    assert value("gateway_queue_callers") == 1
    # So it is A's alone, and gives way as such.
    other = asked(scorer, Caller("c"), ids_of(60))
    with pytest.raises(QueueFullError, match="MAX_QUEUED_TOKENS"):
        await many[5]
    backend.gate.set()
    assert len(await asyncio.gather(other, *many[:5])) == 6


async def test_he_who_asked_first_may_leave_what_another_waits_for(backend: Any, eventually: Eventually) -> None:
    metrics = Metrics()
    scorer = scorer_of(backend, metrics, batch_tokens=12, tokens_in_flight=12)
    value = metrics.registry.get_sample_value
    backend.gate.clear()
    first = asked(scorer, A, ids_of(0))
    await eventually(lambda: len(backend.scored) == 1)
    leaving, staying = asked(scorer, A, ids_of(1)), asked(scorer, B, ids_of(1))
    await eventually(lambda: value("gateway_queue_callers") == 2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert (value("gateway_queue_callers"), value("gateway_queue_sequences")) == (1, 1)
    backend.gate.set()
    assert [answer.rows.top_k for answer in await asyncio.gather(first, staying)] == [4, 4]


async def test_when_too_many_are_in_flight_he_who_has_most_gives_way(backend: Any, eventually: Eventually) -> None:
    scorer = scorer_of(backend, batch_tokens=12, tokens_in_flight=12, queued_sequences=6)
    backend.gate.clear()
    many = [asked(scorer, A, ids_of(i)) for i in range(6)]
    await eventually(lambda: scorer.queued_tokens == 60)
    with pytest.raises(QueueFullError, match="MAX_QUEUED_SEQUENCES"):
        await asked(scorer, A, ids_of(50))
    other = asked(scorer, B, ids_of(60))
    with pytest.raises(QueueFullError, match="MAX_QUEUED_SEQUENCES"):
        await many[5]
    backend.gate.set()
    await asyncio.gather(other, *many[:5])


async def test_an_error_in_choosing_a_batch_stops_no_scoring(
    backend: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(backend)
    choose, errors = scorer._dispatcher._queue.next_batch, [ZeroDivisionError()]

    def failing_once(max_batch_tokens: int) -> Any:
        if errors:
            raise errors.pop()
        return choose(max_batch_tokens)

    monkeypatch.setattr(scorer._dispatcher._queue, "next_batch", failing_once)
    scores = [asked(scorer, A, ids_of(0))]
    await eventually(lambda: not errors)
    # Whoever comes next has it tried again, for those too who came before.
    scores.append(asked(scorer, B, ids_of(1)))
    async with asyncio.timeout(30):
        assert [score.rows.top_k for score in await asyncio.gather(*scores)] == [4, 4]


async def test_the_queue_and_its_batches_are_measured(backend: Any, eventually: Eventually) -> None:
    metrics = Metrics()
    scorer = scorer_of(backend, metrics)
    value = metrics.registry.get_sample_value
    backend.gate.clear()
    scores = [asked(scorer, A, ids_of(0))]
    await eventually(lambda: len(backend.scored) == 1)
    scores += [asked(scorer, caller, ids_of(i)) for i, caller in ((1, A), (2, A), (3, B))]
    await eventually(lambda: value("gateway_queue_sequences") == 3)
    assert (value("gateway_queue_tokens"), value("gateway_queue_callers")) == (36, 2)
    backend.gate.set()
    await asyncio.gather(*scores)
    assert (value("gateway_queue_sequences"), value("gateway_queue_callers")) == (0, 0)
    assert (value("gateway_batch_sequences_count"), value("gateway_batch_sequences_sum")) == (2, 4)
    assert (value("gateway_batch_tokens_sum"), value("gateway_queue_seconds_count")) == (48, 4)
