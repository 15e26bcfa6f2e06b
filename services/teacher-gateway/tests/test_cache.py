import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from latentforge.gateway.backends.base import TeacherDescription
from latentforge.gateway.cache import open_cache
from latentforge.gateway.cache.base import Cache, CacheError, KeyMaker

TEACHER = TeacherDescription(
    backend="embedded",
    model="m",
    revision="r",
    quantization="none",
    engine="e",
    compute_dtype="float32",
    can_score=True,
    can_generate=True,
    max_top_k=64,
    max_sequence_length=512,
    vocab_size=300,
    tokenizer_fingerprint="f",
)


@pytest.fixture(params=["sqlite", "redis"])
async def cache(request: pytest.FixtureRequest, make_settings: Callable[..., Any]) -> AsyncIterator[Cache]:
    changes = {} if request.param == "sqlite" else {"cache_url": request.getfixturevalue("redis_server").url}
    opened = open_cache(make_settings(**changes))
    assert opened.kind == request.param
    yield opened
    await opened.close()


async def test_what_is_put_is_got_in_the_order_of_the_keys(cache: Cache) -> None:
    entries = {bytes([i]) * 64: os.urandom(2000) for i in range(100)}
    await cache.put_many(entries)
    await cache.put_many({b"\x05" * 64: b"new"})
    keys = [*reversed(entries), b"absent"]
    expected = [b"new" if key == b"\x05" * 64 else entries[key] for key in reversed(entries)]
    assert await cache.get_many(keys) == [*expected, None]
    stats = await cache.stats()
    assert stats.entries == 100
    assert stats.bytes > 100_000


async def test_clear_removes_the_entries_and_counts_them(cache: Cache) -> None:
    await cache.put_many({bytes([i]): b"x" for i in range(7)})
    assert await cache.clear() == 7
    assert await cache.get_many([b"\x00"]) == [None]
    assert (await cache.stats()).entries == 0


async def test_sqlite_entries_outlive_the_cache_that_wrote_them(
    make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    for url in ("sqlite:///relative/to/here.sqlite", make_settings().cache_url.get_secret_value()):
        first = open_cache(make_settings(cache_url=url))
        await first.put_many({b"k": b"v"})
        await first.close()
        second = open_cache(make_settings(cache_url=url))
        assert await second.get_many([b"k"]) == [b"v"]
        await second.close()
    assert (tmp_path / "relative/to/here.sqlite").is_file()


async def test_two_caches_on_one_sqlite_file_see_each_other(make_settings: Callable[..., Any]) -> None:
    caches = [open_cache(make_settings()) for _ in range(2)]
    await asyncio.gather(*(c.put_many({bytes([i, j]): b"v" for j in range(50)}) for i, c in enumerate(caches)))
    assert await caches[0].get_many([b"\x01\x31"]) == [b"v"]
    for cache in caches:
        await cache.close()


async def test_a_file_that_is_no_database_is_a_cache_error(make_settings: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"not a database, but long enough to be one" * 100)
    cache = open_cache(make_settings())
    with pytest.raises(CacheError, match="not a database"):
        await cache.get_many([b"k"])
    await cache.close()


async def test_a_locked_sqlite_file_is_a_cache_error(
    make_settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.cache.sqlite_cache._BUSY_SECONDS", 0.05)
    cache = open_cache(make_settings())
    await cache.put_many({b"k": b"v"})
    other = sqlite3.connect(tmp_path / "cache.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CacheError, match="locked"):
        await cache.put_many({b"k": b"w"})
    other.rollback()
    other.close()
    await cache.put_many({b"k": b"w"})
    assert await cache.get_many([b"k"]) == [b"w"]
    await cache.close()


async def test_redis_entries_expire_and_other_keys_are_left_alone(
    make_settings: Callable[..., Any], redis_server: Any
) -> None:
    cache = open_cache(make_settings(cache_url=redis_server.url, cache_ttl_seconds=100))
    with redis.Redis.from_url(redis_server.url) as direct:
        direct.set("somebody else's", "value")
        await cache.put_many({b"k": b"v"})
        (ours,) = [key for key in direct.keys() if key != b"somebody else's"]  # noqa: SIM118
        assert 0 < direct.ttl(ours) <= 100
        assert await cache.clear() == 1
        assert direct.get("somebody else's") == b"value"
    await cache.close()


async def test_a_redis_that_is_frozen_dead_or_back_costs_little_and_recovers(
    make_settings: Callable[..., Any], redis_server: Any
) -> None:
    cache = open_cache(make_settings(cache_url=redis_server.url))
    await cache.put_many({b"k": b"v"})
    redis_server.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(CacheError):
        await cache.get_many([b"k"])
    assert time.monotonic() - started < 2
    redis_server.process.send_signal(signal.SIGCONT)
    for _ in range(50):
        try:
            assert await cache.get_many([b"k"]) == [b"v"]
            break
        except CacheError:
            await asyncio.sleep(0.05)
    else:
        pytest.fail("it never recovered")
    redis_server.process.kill()
    redis_server.process.wait()
    with pytest.raises(CacheError, match=r"127\.0\.0\.1"):
        await cache.get_many([b"k"])
    await cache.close()


async def test_a_password_is_in_no_error(make_settings: Callable[..., Any], free_port: Callable[[], int]) -> None:
    cache = open_cache(make_settings(cache_url=f"redis://:hunter2@127.0.0.1:{free_port()}/0"))
    with pytest.raises(CacheError) as caught:
        await cache.get_many([b"k"])
    assert "hunter2" not in str(caught.value)
    await cache.close()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": "other"},
        {"quantization": "awq"},
        {"tokenizer_fingerprint": "other"},
        {"logprobs_mode": 2},
        {"compute_dtype": "bfloat16"},
        # The parts must not run into each other.
        {"model": "mr", "revision": ""},
    ],
)
def test_whatever_changes_the_rows_changes_the_key(change: dict[str, Any]) -> None:
    ids = np.arange(10, dtype=np.uint32)
    keys = {KeyMaker(teacher).key(ids, "float16") for teacher in (TEACHER, replace(TEACHER, **change))}
    assert len(keys) == 2


def test_a_key_tells_ids_and_precision_apart_and_nothing_else() -> None:
    keys = KeyMaker(TEACHER)
    ids = np.arange(10, dtype=np.uint32)
    different = {keys.key(i, "float16") for i in (ids, ids[:-1], ids[1:], ids[::-1], ids + 1)}
    assert len(different) == 5
    assert keys.key(ids, "float32") not in different
    same = KeyMaker(replace(TEACHER, engine="newer", max_top_k=3))
    assert same.key(ids.copy(), "float16") == keys.key(ids, "float16")
