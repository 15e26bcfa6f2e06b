import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from latentforge.core.sparse_rows import pack
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.cache import NoCache
from latentforge.gateway.cache.base import CacheError
from latentforge.gateway.cache.sqlite_cache import SqliteCache
from latentforge.gateway.scoring import Scorer

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


def ids_of(seed: int, length: int = 12) -> Any:
    return np.random.default_rng(seed).integers(0, 300, length).astype(np.uint32)


class BrokenCache(NoCache):
    kind = "redis"

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        raise CacheError("down")

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        raise CacheError("down")


@pytest.fixture
async def store(tmp_path: Any) -> AsyncIterator[SqliteCache]:
    cache = SqliteCache(tmp_path / "rows.sqlite")
    yield cache
    await cache.close()


def scorer_of(backend: Any, cache: Any, **changes: int) -> Scorer:
    return Scorer(backend, cache, **({"max_batch_tokens": 64, "max_tokens_in_flight": 256} | changes))


async def test_a_second_question_is_answered_by_the_store_with_the_same_rows(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    first = await scorer.score(ids_of(0), 8, "float32")
    await scorer.close()
    again = scorer_of(backend, store)
    second = await again.score(ids_of(0), 8, "float32")
    assert (first.cache_hit, second.cache_hit) == (False, True)
    for name in ("ids", "logprobs", "counts", "realised_logprobs", "realised_ranks", "tail_mass"):
        np.testing.assert_array_equal(getattr(first.rows, name), getattr(second.rows, name))
    assert len(backend.scored) == 1
    assert (again.stats.hits, again.stats.misses, again.stats.rows_from_cache) == (1, 0, 11)


async def test_more_entries_serve_fewer_and_fewer_are_replaced_by_more(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    for top_k, hit in ((4, False), (9, False), (3, True), (9, True), (4, True)):
        answer = await scorer.score(ids_of(0), top_k, "float16")
        assert (answer.rows.top_k, answer.cache_hit) == (top_k, hit)
        await scorer.close()
    narrow, wide = [(await scorer.score(ids_of(0), k, "float16")).rows for k in (3, 9)]
    np.testing.assert_array_equal(narrow.ids, wide.ids[:, :3])
    mass = np.exp(wide.logprobs).sum(1) + wide.tail_mass
    np.testing.assert_allclose(np.exp(narrow.logprobs).sum(1) + narrow.tail_mass, mass, atol=1e-5)
    assert len(backend.scored) == 2


async def test_float32_is_never_served_from_rounded_entries(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    await scorer.score(ids_of(0), 8, "float16")
    await scorer.close()
    exact = await scorer.score(ids_of(0), 8, "float32")
    assert not exact.cache_hit


async def test_another_prefix_of_the_same_tokens_is_another_entry(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    await scorer.score(ids_of(0, 12), 4, "float16")
    await scorer.close()
    assert not (await scorer.score(ids_of(0, 12)[1:], 4, "float16")).cache_hit
    assert not (await scorer.score(ids_of(0, 12)[:-1], 4, "float16")).cache_hit


@pytest.mark.parametrize("damage", ["flipped", "cut", "other rows"])
async def test_a_corrupt_entry_is_computed_again_and_replaced(backend: Any, store: SqliteCache, damage: str) -> None:
    scorer = scorer_of(backend, store)
    good = await scorer.score(ids_of(0), 4, "float16")
    await scorer.close()
    key = scorer._keys.key(ids_of(0), "float16")
    (value,) = await store.get_many([key])
    assert value is not None
    other = (await scorer.score(ids_of(1, 5), 4, "float16")).rows
    bad = {"flipped": value[:-3] + bytes([value[-3] ^ 1]) + value[-2:], "cut": value[:40], "other rows": pack(other)}
    await store.put_many({key: bad[damage]})
    repaired = await scorer.score(ids_of(0), 4, "float16")
    assert not repaired.cache_hit
    np.testing.assert_array_equal(repaired.rows.ids, good.rows.ids)
    assert scorer.stats.corrupt_entries == 1
    await scorer.close()
    assert (await scorer.score(ids_of(0), 4, "float16")).cache_hit


async def test_a_cache_that_is_down_costs_nothing_but_its_hits(backend: Any) -> None:
    scorer = scorer_of(backend, BrokenCache())
    for _ in range(2):
        assert not (await scorer.score(ids_of(0), 4, "float16")).cache_hit
        await scorer.close()
    assert scorer.stats.errors == 4
    assert scorer.stats.rows_computed == 22


async def test_identical_questions_in_flight_are_computed_once(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache())
    callers = [asyncio.create_task(scorer.score(ids_of(0), k, "float16")) for k in (6, 2, 6, 1)]
    await eventually(lambda: len(backend.scored) == 1)
    callers.append(asyncio.create_task(scorer.score(ids_of(0), 5, "float16")))
    backend.gate.set()
    answers = await asyncio.gather(*callers)
    assert [a.rows.top_k for a in answers] == [6, 2, 6, 1, 5]
    assert backend.scored == [[ids_of(0).tolist()]]


async def test_an_answer_on_its_way_into_the_store_is_a_hit(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    await scorer.score(ids_of(0), 4, "float16")
    assert (await scorer.score(ids_of(0), 3, "float16")).cache_hit
    assert (scorer.stats.hits, scorer.stats.rows_from_cache, len(backend.scored)) == (1, 11, 1)
    await scorer.close()


async def test_a_question_for_more_entries_does_not_wait_for_fewer(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache())
    few = asyncio.create_task(scorer.score(ids_of(0), 2, "float16"))
    await eventually(lambda: len(backend.scored) == 1)
    more = asyncio.create_task(scorer.score(ids_of(0), 7, "float16"))
    await eventually(lambda: len(backend.scored) == 2)
    backend.gate.set()
    assert (await few).rows.top_k == 2
    assert (await more).rows.top_k == 7
    assert backend.top_ks == [2, 7]


async def test_a_cancelled_caller_leaves_the_others_their_answer(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache())
    callers = [asyncio.create_task(scorer.score(ids_of(0), 4, "float16")) for _ in range(3)]
    await eventually(lambda: len(backend.scored) == 1)
    callers[0].cancel()
    await asyncio.gather(callers[0], return_exceptions=True)
    backend.gate.set()
    assert [a.rows.top_k for a in await asyncio.gather(*callers[1:])] == [4, 4]
    assert len(backend.scored) == 1


async def test_work_that_nobody_waits_for_never_reaches_the_backend(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache(), max_batch_tokens=12, max_tokens_in_flight=12)
    callers = [asyncio.create_task(scorer.score(ids_of(i), 4, "float16")) for i in range(4)]
    await eventually(lambda: len(backend.scored) == 1)
    for caller in callers[1:3]:
        caller.cancel()
    await asyncio.gather(*callers[1:3], return_exceptions=True)
    backend.gate.set()
    await asyncio.gather(callers[0], callers[3])
    await scorer.close()
    assert backend.scored == [[ids_of(0).tolist()], [ids_of(3).tolist()]]
    # And a dropped question can be asked again.
    assert (await scorer.score(ids_of(1), 4, "float16")).rows.top_k == 4


async def test_questions_of_one_moment_share_batches_of_like_lengths(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache(), max_batch_tokens=40, max_tokens_in_flight=1000)
    lengths = [20, 5, 19, 6, 20, 4]
    await asyncio.gather(*(scorer.score(ids_of(i, n), 4, "float16") for i, n in enumerate(lengths)))
    assert [sorted(map(len, batch)) for batch in backend.scored] == [[20, 20], [4, 5, 6], [19]]


async def test_tokens_given_to_the_backend_are_bounded(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache(), max_batch_tokens=12, max_tokens_in_flight=36)
    callers = [asyncio.create_task(scorer.score(ids_of(i), 4, "float16")) for i in range(8)]
    await eventually(lambda: len(backend.scored) == 3)
    await asyncio.sleep(0.05)
    assert len(backend.scored) == 3
    backend.gate.set()
    await asyncio.gather(*callers)
    assert len(backend.scored) == 8


async def test_a_failure_reaches_every_caller_and_is_not_remembered(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache())
    backend.failure = BackendError("broken")
    results = await asyncio.gather(
        *(scorer.score(ids_of(i // 2), 4, "float16") for i in range(4)), return_exceptions=True
    )
    assert [str(r) for r in results] == ["broken"] * 4
    backend.failure = None
    assert (await scorer.score(ids_of(0), 4, "float16")).rows.top_k == 4


async def test_saved_seconds_are_the_teacher_time_that_hits_did_not_take(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    await scorer.warm_up(ids_of(9, 100))
    stats = scorer.stats
    assert stats.timed_rows == 99
    assert stats.saved_seconds == 0
    await scorer.score(ids_of(0), 4, "float16")
    await scorer.close()
    await scorer.score(ids_of(0), 4, "float16")
    assert stats.saved_seconds == pytest.approx(11 * stats.teacher_seconds / 110)
    assert (stats.rows_computed, stats.rows_from_cache) == (11, 11)
