"""The size that a SQLite cache keeps to, and what goes when it is full."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.gateway.cache import open_cache
from latentforge.gateway.cache import sqlite_cache as module
from latentforge.gateway.cache.base import KeyMaker
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.dispatcher import ScoringLimits
from latentforge.gateway.scoring.scorer import Scorer

MEGABYTE = 1 << 20


class Clock:
    """What the cache takes for the time of day."""

    now = 1_000_000.0

    def time(self) -> float:
        self.now += 1000
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def entry() -> bytes:
    return os.urandom(50_000)


async def test_the_file_keeps_to_its_size_and_those_asked_for_longest_ago_go(
    make_settings: Callable[..., Any], tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cache = open_cache(make_settings(cache_max_mb=2))
    first = {bytes([i]): entry() for i in range(10)}
    await cache.put_many(first)
    for i in range(10, 200):
        # The first is asked for again and again.
        assert (await cache.get_many([b"\x00"]))[0] == first[b"\x00"]
        await cache.put_many({bytes([i]): entry()})
    kept = [i for i, value in enumerate(await cache.get_many([bytes([i]) for i in range(200)])) if value is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 200))
    assert 30 <= len(kept) <= 2 * MEGABYTE // 50_000
    assert (await cache.stats()).entries == len(kept)
    await cache.close()
    assert (tmp_path / "cache.sqlite").stat().st_size < 2.2 * MEGABYTE
    told = [r.getMessage() for r in caplog.records if "CACHE_MAX_MB" in r.getMessage()]
    assert len(told) == 1
    assert "CACHE_MAX_MB=2" in told[0]


async def test_what_is_asked_for_again_and_answered_from_memory_stays_in_a_full_file(
    backend: Any, tmp_path: Path, clock: Clock
) -> None:
    store = module.SqliteCache(tmp_path / "cache.sqlite", max_bytes=256 << 10)
    cache = GuardedCache(store, Metrics(), max_queued_bytes=1 << 20)
    limits = ScoringLimits(batch_tokens=256, tokens_in_flight=256, queued_tokens=10_000, queued_sequences=1000)
    scorer = Scorer(backend, cache, Metrics(), limits, recent_bytes=1 << 20)
    hot, *others = (np.random.default_rng(i).integers(0, 260, 200).astype(np.uint32) for i in range(50))
    await scorer.score(hot, 8, "float32")
    for ids in others:
        await scorer.score(ids, 8, "float32")
        # Until it is written.
        await scorer.close()
        assert (await scorer.score(hot, 8, "float32")).cache_hit
    keys = [KeyMaker(backend.description).key(ids, "float32") for ids in (hot, *others)]
    kept = [value is not None for value in await store.get_many(keys)]
    assert kept[0]
    # The file is full, and of the others the latest are there.
    assert 3 < sum(kept) < 45
    assert all(kept[-3:])
    await cache.close()


async def test_a_file_of_an_earlier_version_is_taken_over_and_what_it_holds_goes_first(
    make_settings: Callable[..., Any], tmp_path: Path, clock: Clock
) -> None:
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        connection.executemany("INSERT INTO entries VALUES (?, ?)", ((b"old %d" % i, entry()) for i in range(60)))
    connection.close()
    cache = open_cache(make_settings(cache_max_mb=3))
    assert (await cache.get_many([b"old 0"])) != [None]
    new = {b"new %d" % i: entry() for i in range(30)}
    for key, value in new.items():
        await cache.put_many({key: value})
    assert await cache.get_many(list(new)) == list(new.values())
    old = await cache.get_many([b"old %d" % i for i in range(60)])
    assert 10 < sum(value is not None for value in old) < 35
    assert await cache.clear() == (sum(value is not None for value in old) + 30)
    await cache.close()


async def test_without_a_bound_everything_stays(make_settings: Callable[..., Any]) -> None:
    cache = open_cache(make_settings(cache_max_mb=0))
    entries = {bytes([i]): entry() for i in range(100)}
    await cache.put_many(entries)
    assert await cache.get_many(list(entries)) == list(entries.values())
    await cache.close()
