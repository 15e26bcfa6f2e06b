import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.cache import NoCache
from latentforge.gateway.cache.base import CacheError
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.cache.memory import RecentRows
from latentforge.gateway.cache.sqlite_cache import SqliteCache
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.dispatcher import ScoringLimits
from latentforge.gateway.scoring.inflight import QueueFullError
from latentforge.gateway.scoring.scorer import Scorer
from latentforge.teacher_client.sparse_rows import PackedRows, SparseRows, pack

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


LIMITS = ScoringLimits(batch_tokens=64, tokens_in_flight=256, queued_tokens=10_000, queued_sequences=1000)


def scorer_of(backend: Any, store: Any, *, recent_bytes: int = 0, **changes: int) -> Scorer:
    metrics = Metrics()
    cache = GuardedCache(store, metrics, max_queued_bytes=1 << 20)
    return Scorer(backend, cache, metrics, replace(LIMITS, **changes), recent_bytes=recent_bytes)


def arrays(rows: SparseRows | PackedRows) -> SparseRows:
    return rows.unpacked() if isinstance(rows, PackedRows) else rows


async def test_a_second_question_is_answered_by_the_store_with_the_same_rows(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    first = await scorer.score(ids_of(0), 8, "float32")
    await scorer.close()
    again = scorer_of(backend, store)
    second = await again.score(ids_of(0), 8, "float32")
    assert (first.cache_hit, second.cache_hit) == (False, True)
    for name in ("ids", "logprobs", "counts", "realised_logprobs", "realised_ranks", "tail_mass"):
        np.testing.assert_array_equal(getattr(arrays(first.rows), name), getattr(arrays(second.rows), name))
    assert len(backend.scored) == 1
    assert (again.stats.hits, again.stats.misses, again.stats.rows_from_cache) == (1, 0, 11)


async def test_more_entries_serve_fewer_and_fewer_are_replaced_by_more(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    for top_k, hit in ((4, False), (9, False), (3, True), (9, True), (4, True)):
        answer = await scorer.score(ids_of(0), top_k, "float16")
        assert (answer.rows.top_k, answer.cache_hit) == (top_k, hit)
        await scorer.close()
    narrow, wide = [arrays((await scorer.score(ids_of(0), k, "float16")).rows) for k in (3, 9)]
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
    other = arrays((await scorer.score(ids_of(1, 5), 4, "float16")).rows)
    bad = {"flipped": value[:-3] + bytes([value[-3] ^ 1]) + value[-2:], "cut": value[:40], "other rows": pack(other)}
    await store.put_many({key: bad[damage]})
    repaired = await scorer.score(ids_of(0), 4, "float16")
    assert not repaired.cache_hit
    np.testing.assert_array_equal(arrays(repaired.rows).ids, arrays(good.rows).ids)
    assert scorer.stats.corrupt_entries == 1
    await scorer.close()
    assert (await scorer.score(ids_of(0), 4, "float16")).cache_hit


async def test_a_cache_that_is_down_costs_nothing_but_its_hits(backend: Any) -> None:
    scorer = scorer_of(backend, BrokenCache())
    for seed in range(2):
        assert not (await scorer.score(ids_of(seed), 4, "float16")).cache_hit
    # What could not be written yet is found where it waits.
    assert (await scorer.score(ids_of(0), 4, "float16")).cache_hit
    await scorer.close()
    assert scorer._cache.errors >= 4
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
    backend.batches_at_once = 2
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
    scorer = scorer_of(backend, NoCache(), batch_tokens=12, tokens_in_flight=12)
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
    scorer = scorer_of(backend, NoCache(), batch_tokens=40, tokens_in_flight=1000)
    lengths = [20, 5, 19, 6, 20, 4]
    await asyncio.gather(*(scorer.score(ids_of(i, n), 4, "float16") for i, n in enumerate(lengths)))
    assert [sorted(map(len, batch)) for batch in backend.scored] == [[20, 20], [4, 5, 6], [19]]


async def test_tokens_given_to_the_backend_are_bounded(backend: Any, eventually: Eventually) -> None:
    backend.batches_at_once = 8
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache(), batch_tokens=12, tokens_in_flight=36)
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


async def test_what_was_asked_lately_needs_no_store_and_no_teacher(backend: Any) -> None:
    scorer = scorer_of(backend, BrokenCache(), recent_bytes=1 << 20)
    first = await scorer.score(ids_of(0), 8, "float16")
    await scorer.close()
    errors = scorer._cache.errors
    narrow = await scorer.score(ids_of(0), 5, "float16")
    assert (narrow.cache_hit, narrow.rows.top_k, len(backend.scored)) == (True, 5, 1)
    np.testing.assert_array_equal(arrays(narrow.rows).ids, arrays(first.rows).ids[:, :5])
    assert not (await scorer.score(ids_of(0), 9, "float16")).cache_hit
    assert not (await scorer.score(ids_of(0), 5, "float32")).cache_hit
    assert scorer._cache.errors > errors


def test_memory_holds_no_more_than_it_may() -> None:
    rows = SparseRows(
        first_position=1,
        ids=np.random.default_rng(0).integers(0, 2**32, (50, 4), np.uint32),
        logprobs=np.zeros((50, 4), np.float32),
        counts=np.full(50, 4, np.uint16),
        realised_logprobs=np.zeros(50, np.float32),
        realised_ranks=np.ones(50, np.uint32),
        tail_mass=np.zeros(50, np.float32),
    )
    packed = PackedRows.of(rows)
    recent = RecentRows(3 * len(packed.data))
    for key in (b"a", b"b", b"c", b"a"):
        recent.put(key, packed)
    assert recent.get(b"a") is packed
    recent.get(b"b")
    recent.put(b"d", packed)
    assert [recent.get(key) is packed for key in (b"a", b"b", b"c", b"d")] == [True, True, False, True]
    nothing = RecentRows(len(packed.data) - 1)
    nothing.put(b"a", packed)
    assert nothing.get(b"a") is None


async def test_packed_answers_are_the_stored_bytes_unless_fewer_entries_are_wanted(
    backend: Any, store: SqliteCache
) -> None:
    scorer = scorer_of(backend, store)
    fresh = (await scorer.score(ids_of(0), 8, "float16", packed=True)).rows
    await scorer.close()
    (value,) = await store.get_many([scorer._keys.key(ids_of(0), "float16")])
    cached = (await scorer.score(ids_of(0), 8, "float16", packed=True)).rows
    assert isinstance(fresh, PackedRows)
    assert isinstance(cached, PackedRows)
    assert fresh.data == cached.data == value
    narrow = (await scorer.score(ids_of(0), 3, "float16", packed=True)).rows
    assert isinstance(narrow, PackedRows)
    expected = fresh.unpacked().narrowed(3)
    np.testing.assert_array_equal(narrow.unpacked().ids, expected.ids)
    np.testing.assert_array_equal(narrow.unpacked().tail_mass, expected.tail_mass)


async def test_an_entry_with_the_right_header_and_other_content_is_refused(backend: Any, store: SqliteCache) -> None:
    scorer = scorer_of(backend, store)
    good = arrays((await scorer.score(ids_of(0), 4, "float16")).rows)
    await scorer.close()
    key = scorer._keys.key(ids_of(0), "float16")
    short = replace(good, **{name: getattr(good, name)[:5] for name in list(vars(good))[1:-1]})
    payload = pack(short)[20:]
    header = pack(good)[:16]
    forged = header + zlib.crc32(payload, zlib.crc32(header)).to_bytes(4, "little") + payload
    for entry in (forged, pack(replace(good, first_position=2)), pack(good, "float32")):
        await store.put_many({key: entry})
        for packed in (True, False):
            await store.put_many({key: entry})
            again = await scorer.score(ids_of(0), 4, "float16", packed=packed)
            assert not again.cache_hit
            np.testing.assert_array_equal(arrays(again.rows).ids, good.ids)
            await scorer.close()
    assert scorer.stats.corrupt_entries == 6


async def test_the_backend_stops_when_everybody_has_left_and_not_before(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache())
    callers = [asyncio.create_task(scorer.score(ids_of(i // 2), 4, "float16")) for i in range(4)]
    await eventually(lambda: len(backend.scored) == 1)
    for left in range(3):
        callers[left].cancel()
        await asyncio.gather(callers[left], return_exceptions=True)
        assert backend.cancelled == 0
    callers[3].cancel()
    # Whoever asks now is not drawn into what ends.
    late = asyncio.create_task(scorer.score(ids_of(0), 4, "float16"))
    await asyncio.gather(callers[3], return_exceptions=True)
    await eventually(lambda: backend.cancelled == 1)
    await eventually(lambda: len(backend.scored) == 2)
    backend.gate.set()
    assert (await late).rows.top_k == 4


async def test_a_sequence_that_fails_a_batch_fails_alone(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache(), batch_tokens=1000)
    bad = ids_of(2)
    for kind in (FailureKind.REFUSED, FailureKind.BROKEN):
        backend.refused = {int(bad[0]): BackendError("not this one", kind)}
        results = await asyncio.gather(
            *(scorer.score(ids_of(i), 4, "float16") for i in range(5)), return_exceptions=True
        )
        assert [isinstance(r, BackendError) for r in results] == [False, False, True, False, False]


async def test_who_asks_for_what_a_failed_batch_left_out_is_not_given_its_failure(
    backend: Any, eventually: Eventually
) -> None:
    backend.gate.clear()
    backend.refused = {int(ids_of(0)[0]): BackendError("not this one", FailureKind.REFUSED)}
    scorer = scorer_of(backend, NoCache(), batch_tokens=1000)
    bad, left, slow = [asyncio.create_task(scorer.score(ids_of(i), 4, "float16")) for i in range(3)]
    await eventually(lambda: len(backend.scored) == 1)
    left.cancel()

    async def let_through(calls: int) -> None:
        backend.gate.set()
        backend.gate.clear()
        await eventually(lambda: len(backend.scored) == calls)

    # The batch, then the bad one alone.
    await let_through(2)
    await let_through(3)
    assert backend.scored[1:] == [[ids_of(0).tolist()], [ids_of(2).tolist()]]
    late = asyncio.create_task(scorer.score(ids_of(1), 4, "float16"))
    await asyncio.sleep(0)
    backend.gate.set()
    with pytest.raises(BackendError, match="not this one"):
        await bad
    assert [(await score).rows.top_k for score in (slow, late)] == [4, 4]
    assert backend.scored[3:] == [[ids_of(1).tolist()]]


@pytest.mark.parametrize("kind", [FailureKind.GONE, FailureKind.BUSY, FailureKind.TOO_SLOW])
async def test_a_teacher_that_is_gone_is_not_asked_again_for_each(backend: Any, kind: FailureKind) -> None:
    scorer = scorer_of(backend, NoCache(), batch_tokens=1000)
    backend.failure = BackendError("gone", kind)
    results = await asyncio.gather(*(scorer.score(ids_of(i), 4, "float16") for i in range(5)), return_exceptions=True)
    assert all(isinstance(r, BackendError) and r.kind is kind for r in results)
    assert len(backend.scored) == 1


async def test_a_sequence_for_which_a_server_says_500_fails_alone(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache(), batch_tokens=1000)
    error = BackendError("answers 500: Internal Server Error", FailureKind.GONE, one_may_cause=True)
    backend.refused = {int(ids_of(2)[0]): error}
    results = await asyncio.gather(*(scorer.score(ids_of(i), 4, "float16") for i in range(5)), return_exceptions=True)
    assert [isinstance(r, BackendError) for r in results] == [False, False, True, False, False]


async def test_a_server_that_says_500_to_everything_is_an_outage_after_two(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache(), batch_tokens=1000)
    backend.failure = BackendError("answers 500: Internal Server Error", FailureKind.GONE, one_may_cause=True)
    results = await asyncio.gather(*(scorer.score(ids_of(i), 4, "float16") for i in range(9)), return_exceptions=True)
    assert all(isinstance(r, BackendError) and r.kind is FailureKind.GONE for r in results)
    assert [len(batch) for batch in backend.scored] == [9, 1, 1]


async def test_a_bug_in_a_backend_is_a_failure_with_a_name_and_nobody_waits_for_ever(backend: Any) -> None:
    scorer = scorer_of(backend, NoCache())
    backend.failure = ZeroDivisionError("secret")
    with pytest.raises(BackendError, match="ZeroDivisionError in the gateway"):
        await scorer.score(ids_of(0), 4, "float16")


async def test_a_full_queue_says_when_to_come_again(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache(), batch_tokens=12, tokens_in_flight=12, queued_tokens=24)
    callers = []
    # One is computed and two wait: 24 tokens.
    for i in range(3):
        callers.append(asyncio.create_task(scorer.score(ids_of(i), 4, "float16")))
        await eventually(lambda: bool(backend.scored))
        await asyncio.sleep(0.02)
    await eventually(lambda: scorer.queued_tokens == 24)
    with pytest.raises(QueueFullError, match="24 tokens are queued") as caught:
        await scorer.score(ids_of(9), 4, "float16")
    assert caught.value.kind is FailureKind.BUSY
    assert caught.value.retry_after is not None
    # What is in flight already is no new work.
    callers.append(asyncio.create_task(scorer.score(ids_of(2), 4, "float16")))
    backend.gate.set()
    await asyncio.gather(*callers)
    assert (await scorer.score(ids_of(9), 4, "float16")).rows.top_k == 4


async def test_sequences_under_way_are_bounded(backend: Any, eventually: Eventually) -> None:
    backend.gate.clear()
    scorer = scorer_of(backend, NoCache(), queued_sequences=2)
    callers = [asyncio.create_task(scorer.score(ids_of(i), 4, "float16")) for i in range(2)]
    await eventually(lambda: bool(backend.scored))
    with pytest.raises(QueueFullError, match="2 sequences are in flight"):
        await scorer.score(ids_of(9), 4, "float16")
    backend.gate.set()
    await asyncio.gather(*callers)
