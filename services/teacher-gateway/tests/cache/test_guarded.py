"""A real Redis that is dead, frozen, slow, flapping or restarted: every answer comes, and few wait for it."""

import asyncio
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from pydantic import SecretStr

from latentforge.gateway.cache import NoCache, open_cache
from latentforge.gateway.cache.base import Cache, CacheError, StoreStats
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.dispatcher import ScoringLimits
from latentforge.gateway.scoring.scorer import Scorer

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
LIMITS = ScoringLimits(batch_tokens=64, tokens_in_flight=256, queued_tokens=10_000, queued_sequences=1000)


class WatchedStore:
    """A real store whose lookups are counted."""

    def __init__(self, inner: Cache) -> None:
        self.inner = inner
        self.kind = inner.kind
        self.patience = inner.patience
        self.lookups = 0

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.lookups += 1
        return await self.inner.get_many(keys)

    def used(self, key: bytes) -> None:
        self.inner.used(key)

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        await self.inner.put_many(entries)

    async def check(self) -> None:
        await self.inner.check()

    async def stats(self) -> StoreStats:
        return await self.inner.stats()

    async def clear(self) -> int:
        return await self.inner.clear()

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture
async def store(make_settings: Any, redis_server: Any) -> WatchedStore:
    return WatchedStore(open_cache(make_settings(cache_url=redis_server.url)))


@pytest.fixture
async def cache(store: WatchedStore) -> AsyncIterator[GuardedCache]:
    guarded = GuardedCache(store, Metrics(), max_queued_bytes=10_000)
    yield guarded
    await guarded.close()


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker that tries again after a fifth of a second."""
    monkeypatch.setattr("latentforge.gateway.cache.guarded._PAUSE_SECONDS", 0.2)


def ids_of(seed: int, length: int = 12) -> Any:
    return np.random.default_rng(seed).integers(0, 300, length).astype(np.uint32)


async def ask_for(scorer: Scorer, seconds: float, callers: int = 8) -> int:
    """Callers that ask without a break; returns how many answers they had. A failure is raised."""
    until = time.monotonic() + seconds
    answers = 0

    async def caller(number: int) -> None:
        nonlocal answers
        while time.monotonic() < until:
            assert (await scorer.score(ids_of(number * 1000 + answers % 50), 4, "float16")).rows.top_k == 4
            answers += 1

    await asyncio.gather(*(caller(n) for n in range(callers)))
    return answers


async def test_a_frozen_redis_is_asked_a_few_times_and_no_more(
    backend: Any, store: WatchedStore, cache: GuardedCache, redis_server: Any
) -> None:
    scorer = Scorer(backend, cache, Metrics(), LIMITS)
    await ask_for(scorer, 0.1)
    await scorer.close()
    redis_server.process.send_signal(signal.SIGSTOP)
    before = store.lookups
    assert await ask_for(scorer, 1.5) > 20
    # Four at one time, and one more opens the breaker; those four may have been under way before.
    assert 1 <= store.lookups - before <= 9
    assert await cache.stats() is None
    redis_server.process.send_signal(signal.SIGCONT)


async def test_a_dead_redis_is_asked_a_few_times_and_no_more(
    backend: Any, store: WatchedStore, cache: GuardedCache, redis_server: Any
) -> None:
    redis_server.process.kill()
    redis_server.process.wait()
    scorer = Scorer(backend, cache, Metrics(), LIMITS)
    assert await ask_for(scorer, 1.0) > 20
    assert 5 <= store.lookups <= 9


async def test_a_redis_that_answers_just_in_time_for_its_client_is_too_slow(
    backend: Any, make_settings: Any, redis_server: Any, eventually: Eventually
) -> None:
    connections: set[asyncio.Task[None]] = set()

    async def connected(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        port = int(redis_server.url.rsplit(":", 1)[1].split("/")[0])
        server, to_server = await asyncio.open_connection("127.0.0.1", port)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
            try:
                while data := await source.read(65536):
                    await asyncio.sleep(delay)
                    sink.write(data)
            finally:
                sink.close()
                with suppress(OSError):
                    await sink.wait_closed()

        for source, sink, delay in ((client, to_server, 0.0), (server, to_client, 0.15)):
            task = asyncio.create_task(pass_on(source, sink, delay))
            connections.add(task)

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    store = WatchedStore(open_cache(make_settings(cache_url=f"redis://127.0.0.1:{port}/0")))
    cache = GuardedCache(store, Metrics(), max_queued_bytes=10_000)
    scorer = Scorer(backend, cache, Metrics(), LIMITS)
    assert await ask_for(scorer, 1.5) > 20
    assert store.lookups <= 9
    await cache.close()
    proxy.close()
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


async def test_a_flapping_redis_costs_no_answer_and_is_used_again(
    backend: Any, store: WatchedStore, redis_server: Any, short_pause: None, eventually: Eventually
) -> None:
    cache = GuardedCache(store, Metrics(), max_queued_bytes=1 << 20)
    scorer = Scorer(backend, cache, Metrics(), LIMITS)

    async def flap() -> None:
        for _ in range(6):
            redis_server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.15)
            redis_server.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.1)

    flapping = asyncio.create_task(flap())
    assert await ask_for(scorer, 1.5) > 20
    await flapping
    assert cache.errors > 0
    await eventually(lambda: not cache._queue)
    hits = scorer.stats.hits
    await asyncio.sleep(0.25)
    await ask_for(scorer, 0.2)
    assert scorer.stats.hits > hits
    await cache.close()


async def test_a_redis_restarted_under_load_is_filled_and_hit_again(
    backend: Any, store: WatchedStore, redis_server: Any, short_pause: None, eventually: Eventually
) -> None:
    cache = GuardedCache(store, Metrics(), max_queued_bytes=1 << 20)
    scorer = Scorer(backend, cache, Metrics(), LIMITS)
    load = asyncio.create_task(ask_for(scorer, 2.5, callers=3))
    await asyncio.sleep(0.3)
    redis_server.process.kill()
    redis_server.process.wait()
    await asyncio.sleep(0.5)
    again = subprocess.Popen(  # noqa: ASYNC220
        redis_server.process.args, stdout=subprocess.DEVNULL
    )
    try:
        assert await load > 20
        await eventually(lambda: not cache._queue)
        stats = await cache.stats()
        assert stats is not None
        assert stats.entries > 0
        fresh = Scorer(backend, cache, Metrics(), LIMITS)
        await eventually(lambda: not cache._reads.is_open or not cache._reads.seconds_left)
        sequences = [ids_of(1000 + i) for i in range(3)]
        await asyncio.gather(*(fresh.score(ids, 4, "float16") for ids in sequences))
        await cache.flush(5)
        asked = len(backend.scored)
        later = Scorer(backend, cache, Metrics(), LIMITS)
        await asyncio.gather(*(later.score(ids, 4, "float16") for ids in sequences))
        assert (later.stats.hits, len(backend.scored)) == (3, asked)
    finally:
        await cache.close()
        again.kill()
        again.wait()


async def test_two_gateways_on_one_redis_share_work(run_gateway: Any, redis_server: Any) -> None:
    sequences = [[i, *range(20)] for i in range(40)]
    async with (
        run_gateway(cache_url=redis_server.url) as first,
        run_gateway(cache_url=redis_server.url, cache_memory_mb=0) as second,
    ):
        ours = {a.index: a async for a in first.client.score_batch(sequences, 6)}
        for _ in range(500):
            if (await first.client.cache_stats()).entries == 40:
                break
            await asyncio.sleep(0.01)
        theirs = {a.index: a async for a in second.client.score_batch(sequences, 6)}
        assert second.backend.scored == []
        assert all(a.provenance.cache_hit for a in theirs.values())
        for index, answer in ours.items():
            np.testing.assert_array_equal(answer.rows.ids, theirs[index].rows.ids)
            np.testing.assert_array_equal(answer.rows.logprobs, theirs[index].rows.logprobs)


async def test_writes_wait_in_a_bounded_queue_where_lookups_find_them(
    cache: GuardedCache, redis_server: Any, eventually: Eventually
) -> None:
    redis_server.process.send_signal(signal.SIGSTOP)
    for i in range(12):
        cache.put(bytes([i]) * 64, bytes(1000))
    # The newest are dropped, and a longer entry in the place of one that waits counts as what it adds.
    assert cache.dropped_writes == 3
    cache.put(b"\x00" * 64, bytes(1100))
    assert cache.dropped_writes == 3
    found = await cache.get_many([b"\x00" * 64, b"\x08" * 64])
    assert found is not None
    assert [len(value or b"") for value in found] == [1100, 1000]
    redis_server.process.send_signal(signal.SIGCONT)
    await cache.flush(5)
    assert cache._queued_bytes == 0
    found = await cache.get_many([b"\x00" * 64, b"\x09" * 64])
    assert found is not None
    assert [value is None for value in found] == [False, True]


def replica(direct: redis.Redis, folder: Path) -> None:
    direct.replicaof("127.0.0.1", 1)


def full(direct: redis.Redis, folder: Path) -> None:
    direct.config_set("maxmemory", 1)


def unable_to_save(direct: redis.Redis, folder: Path) -> None:
    direct.config_set("save", "3600 1")
    direct.config_set("dir", str(folder))
    folder.rmdir()
    direct.bgsave()
    while direct.info("persistence")["rdb_last_bgsave_status"] != "err":
        time.sleep(0.01)


def back_to_normal(direct: redis.Redis) -> None:
    direct.replicaof("NO", "ONE")
    direct.config_set("maxmemory", 0)
    direct.config_set("save", "")


@pytest.mark.parametrize(
    ("refuse", "said"),
    [(replica, "read only replica"), (full, "used memory > 'maxmemory'"), (unable_to_save, "MISCONF")],
)
async def test_a_redis_that_takes_no_writes_is_read_on_and_writes_are_dropped_and_counted(
    refuse: Callable[[redis.Redis, Path], None],
    said: str,
    store: WatchedStore,
    redis_server: Any,
    short_pause: None,
    tmp_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING")
    metrics = Metrics()
    cache = GuardedCache(store, metrics, max_queued_bytes=1 << 20)
    cache.put(b"k" * 64, b"before")
    await cache.flush(5)
    (folder := tmp_path / "gone").mkdir()
    with redis.Redis.from_url(redis_server.url) as direct:
        await asyncio.to_thread(refuse, direct, folder)
        until = time.monotonic() + 1
        puts = 0
        while time.monotonic() < until:
            cache.put(puts.to_bytes(64, "big"), bytes(1000))
            puts += 1
            assert await cache.get_many([b"k" * 64]) == [b"before"]
            await asyncio.sleep(0.01)
        await eventually(lambda: cache._queued_bytes == 0)
        # Tried every 0.2 s, with what came meanwhile; nothing piles up.
        assert cache.dropped_writes == puts
        assert metrics.registry.get_sample_value("gateway_cache_dropped_writes_total") == puts
        assert 2 <= cache.errors <= 6
        (line,) = [record.getMessage() for record in caplog.records]
        assert said in line
        back_to_normal(direct)
        await asyncio.sleep(0.25)
        cache.put(b"l" * 64, b"after")
        await cache.flush(5)
        assert await cache.get_many([b"k" * 64, b"l" * 64]) == [b"before", b"after"]
        assert len(caplog.records) == 1
    await cache.close()


async def test_what_a_store_fails_with_costs_hits_only(cache: GuardedCache) -> None:
    class Broken(NoCache):
        kind = "redis"

        async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
            raise ZeroDivisionError

        async def put_many(self, entries: Mapping[bytes, bytes]) -> None:
            raise CacheError("full")

        async def stats(self) -> StoreStats:
            raise ZeroDivisionError

    broken = GuardedCache(Broken(), Metrics(), max_queued_bytes=1000)
    assert await broken.get_many([b"k"]) is None
    assert await broken.stats() is None
    broken.put(b"k", b"v")
    assert await broken.get_many([b"k"]) == [b"v"]
    await broken.close()
    assert broken.errors >= 3


async def test_statistics_that_take_long_are_no_overdue_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = asyncio.Event()

    class Counting(NoCache):
        kind = "redis"
        asked = 0

        async def stats(self) -> StoreStats:
            self.asked += 1
            await answers.wait()
            return StoreStats(3, 4)

    store = Counting()
    cache = GuardedCache(store, Metrics(), max_queued_bytes=1000)
    monkeypatch.setattr("latentforge.gateway.cache.guarded._STATS_SECONDS", 0.02)
    for _ in range(3):
        assert await cache.stats() is None
        assert await cache.get_many([b"k"]) == [None]
    answers.set()
    monkeypatch.setattr("latentforge.gateway.cache.guarded._STATS_SECONDS", 10)
    assert await cache.stats() == StoreStats(3, 4)
    # Those who asked while it took long waited for one count.
    assert store.asked == 1
    assert await cache.stats() == StoreStats(3, 4)
    await cache.close()
    assert store.asked == 2


async def test_lookups_and_statistics_are_answered_while_another_process_writes_to_the_file(
    make_settings: Any, tmp_path: Path
) -> None:
    cache = GuardedCache(open_cache(make_settings()), Metrics(), max_queued_bytes=1000)
    cache.put(b"k", b"v")
    await cache.flush(10)
    other = sqlite3.connect(tmp_path / "cache.sqlite")
    other.execute("BEGIN IMMEDIATE")
    # The writer waits for it.
    cache.put(b"j", b"v")
    await asyncio.sleep(0)
    stats = await cache.stats()
    assert stats is not None
    assert stats.entries == 1
    assert await cache.get_many([b"k"]) == [b"v"]
    other.rollback()
    other.close()
    await cache.close()


def test_patience_follows_what_computing_takes_within_the_stores_bounds() -> None:
    class Store(NoCache):
        kind = "redis"

    cache = GuardedCache(Store(), Metrics(), max_queued_bytes=1)
    least, most = Store.patience.least, Store.patience.most
    assert least == most == cache.patience
    from latentforge.gateway.cache.redis_cache import RedisCache, RedisWaits

    cache = GuardedCache(
        RedisCache(SecretStr("redis://127.0.0.1:1/0"), 1, RedisWaits(0.1, 0.25, 0.1)), Metrics(), max_queued_bytes=1
    )
    taken = []
    for seconds in (0.001, 0.7, 60.0):
        cache.computing_takes(seconds)
        taken.append(cache.patience)
    assert taken == pytest.approx([0.05, 0.07, 0.1])
