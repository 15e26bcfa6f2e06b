import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentforge.gateway.backends.base import TeacherDescription
from latentforge.gateway.cache import open_cache
from latentforge.gateway.cache.base import Cache, CacheError, KeyMaker, WritesRefusedError

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


SERVERS = {"redis": "redis_server", "redis-cluster": "redis_cluster"}


def store_settings(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"cache_url": request.getfixturevalue(SERVERS[kind]).url} if kind in SERVERS else {}


@pytest.fixture(params=["sqlite", *SERVERS])
async def cache(request: pytest.FixtureRequest, make_settings: Callable[..., Any]) -> AsyncIterator[Cache]:
    opened = open_cache(make_settings(**store_settings(request.param, request)))
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


async def test_a_new_sqlite_file_that_another_writes_is_waited_for(
    make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """SQLite itself does not wait for the lock with which a file is put into WAL mode."""
    other = sqlite3.connect(tmp_path / "cache.sqlite")
    other.execute("BEGIN IMMEDIATE")
    cache = open_cache(make_settings())
    writing = asyncio.create_task(cache.put_many({b"k": b"v"}))
    await asyncio.sleep(0.2)
    other.rollback()
    await writing
    other.close()
    await cache.close()


async def test_a_file_that_is_no_database_is_a_cache_error(make_settings: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_bytes(b"not a database, but long enough to be one" * 100)
    cache = open_cache(make_settings())
    with pytest.raises(CacheError, match="not a database"):
        await cache.get_many([b"k"])
    await cache.close()


async def test_a_damaged_index_of_sqlite_gives_no_key_the_value_of_another(
    make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    file, first, other = tmp_path / "cache.sqlite", b"a" * 64, b"b" * 64
    cache = open_cache(make_settings())
    await cache.put_many({b"0" * 64: b"zero", first: b"value of a", other: b"value of b"})
    await cache.close()
    data = file.read_bytes()
    # The index's entries are a key and the number of its row, which no checksum of SQLite's covers.
    assert data.count(first + b"\x02") == data.count(other + b"\x03") == 1
    file.write_bytes(data.replace(first + b"\x02", first + b"\x03"))
    cache = open_cache(make_settings())
    assert await cache.get_many([first, other]) == [None, b"value of b"]
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


async def test_a_frozen_node_of_a_cluster_costs_little_and_whoever_takes_its_slots_is_asked(
    make_settings: Callable[..., Any], redis_cluster: Any
) -> None:
    cache = open_cache(make_settings(cache_url=redis_cluster.url))
    entries = {bytes([i]) * 64: b"v" for i in range(60)}
    await cache.put_many(entries)
    frozen = redis_cluster.processes[1]
    with redis.RedisCluster.from_url(redis_cluster.url.replace("+cluster", "")) as direct:
        heir, lost, third = (direct.get_node("127.0.0.1", port) for port in redis_cluster.ports)
        heirs_id = direct.cluster_myid(heir)
        slots = {key: direct.keyslot(b"latentforge:rows:" + key) for key in entries}
        theirs = [key for key, slot in slots.items() if direct.get_node_from_key(b"latentforge:rows:" + key) == lost]
        frozen.send_signal(signal.SIGSTOP)
        try:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(CacheError, match="redis-cluster at"):
                    await cache.get_many(list(entries))
                assert time.monotonic() - started < 2
            # What a replica does that takes over.
            direct.execute_command("CLUSTER BUMPEPOCH", target_nodes=heir)
            for key, node in product(theirs, (heir, third)):
                direct.execute_command("CLUSTER SETSLOT", slots[key], "NODE", heirs_id, target_nodes=node)
            with contextlib.suppress(CacheError):
                await cache.get_many(list(entries))
            assert await cache.get_many(list(entries)) == [None if k in theirs else b"v" for k in entries]
            await cache.put_many(dict.fromkeys(theirs, b"new"))
            assert await cache.get_many(theirs) == [b"new"] * len(theirs) != []
        finally:
            frozen.send_signal(signal.SIGCONT)
    await cache.close()


async def test_a_cluster_that_is_down_for_now_does_not_refuse_entries(
    make_settings: Callable[..., Any], redis_cluster: Any
) -> None:
    cache = open_cache(make_settings(cache_url=redis_cluster.url))
    key = b"latentforge:rows:k"
    with redis.RedisCluster.from_url(redis_cluster.url.replace("+cluster", "")) as direct:
        node, slot = direct.get_node_from_key(key), direct.keyslot(key)
        direct.execute_command("CLUSTER DELSLOTS", slot, target_nodes=node)
        with pytest.raises(CacheError, match=r"not served|cluster is down") as caught:
            await cache.put_many({b"k": b"v"})
        direct.execute_command("CLUSTER ADDSLOTS", slot, target_nodes=node)
        redis_cluster.wait_until_up()
    assert not isinstance(caught.value, WritesRefusedError)
    await cache.put_many({b"k": b"v"})
    assert await cache.get_many([b"k"]) == [b"v"]
    await cache.close()


async def test_a_node_of_a_cluster_is_told_from_a_single_server(
    make_settings: Callable[..., Any], redis_cluster: Any, redis_server: Any
) -> None:
    single = open_cache(make_settings(cache_url=redis_cluster.url.replace("+cluster", "")))
    entries = {bytes([i]): b"v" for i in range(9)}
    for work in (single.get_many(list(entries)), single.put_many(entries)):
        with pytest.raises(CacheError, match=r"write redis\+cluster:// in CACHE_URL"):
            await work
    await single.close()
    cluster = open_cache(make_settings(cache_url=redis_server.url.replace("://", "+cluster://")))
    with pytest.raises(CacheError, match="Cluster"):
        await cluster.get_many([b"k"])
    await cluster.close()


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_password_is_in_no_error(
    make_settings: Callable[..., Any], free_port: Callable[[], int], scheme: str
) -> None:
    cache = open_cache(make_settings(cache_url=f"{scheme}://:hunter2@127.0.0.1:{free_port()}/0"))
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


ids_lists = st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40)
names = st.text(max_size=6)


@given(a=ids_lists, b=ids_lists, dtypes=st.tuples(*[st.sampled_from(["float16", "float32"])] * 2))
def test_no_two_questions_share_a_key(a: list[int], b: list[int], dtypes: tuple[Any, Any]) -> None:
    keys = KeyMaker(TEACHER)
    first, second = (keys.key(np.array(i, np.uint32), d) for i, d in zip((a, b), dtypes, strict=True))
    assert (first == second) == ((a, dtypes[0]) == (b, dtypes[1]))


@given(ids=ids_lists, at=st.integers(0, 39), bit=st.integers(0, 31))
def test_every_bit_of_every_id_is_in_the_key(ids: list[int], at: int, bit: int) -> None:
    other = list(ids)
    other[at % len(ids)] ^= 1 << bit
    keys = KeyMaker(TEACHER)
    assert len({keys.key(np.array(i, np.uint32), "float16") for i in (ids, other)}) == 2


@given(ids=ids_lists, at=st.integers(1, 39), extra=st.integers(0, 2**32 - 1))
def test_neither_a_beginning_nor_an_end_nor_a_longer_text_is_a_hit(ids: list[int], at: int, extra: int) -> None:
    keys = KeyMaker(TEACHER)
    parts = [ids, ids[:at], ids[at:], [*ids, extra], [extra, *ids], [*ids, *ids]]
    different = {tuple(part) for part in parts}
    assert len({keys.key(np.array(part, np.uint32), "float16") for part in different}) == len(different)


@given(
    a=st.tuples(names, names, names, names, st.sampled_from([1, 2]), names),
    b=st.tuples(names, names, names, names, st.sampled_from([1, 2]), names),
)
def test_no_two_teachers_share_a_key(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    fields = ("model", "revision", "quantization", "tokenizer_fingerprint", "logprobs_mode", "compute_dtype")
    ids = np.arange(3, dtype=np.uint32)
    first, second = (
        KeyMaker(replace(TEACHER, **dict(zip(fields, values, strict=True)))).key(ids, "float16") for values in (a, b)
    )
    assert (first == second) == (a == b)


keys_of_a_store = st.binary(min_size=1, max_size=3)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.dictionaries(keys_of_a_store, st.binary(min_size=1, max_size=50), min_size=1)),
        st.tuples(st.just("get"), st.lists(keys_of_a_store, min_size=1, max_size=5)),
        st.tuples(st.just("clear"), st.none()),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
def test_a_store_behaves_as_a_dict(kind: str, make_settings: Callable[..., Any], request: Any) -> None:
    changes = store_settings(kind, request)

    async def compare(steps: list[tuple[str, Any]]) -> None:
        cache = open_cache(make_settings(**changes))
        await cache.clear()
        model: dict[bytes, bytes] = {}
        for step, argument in steps:
            if step == "put":
                await cache.put_many(argument)
                model.update(argument)
            elif step == "get":
                assert await cache.get_many(argument) == [model.get(key) for key in argument]
            else:
                assert await cache.clear() == len(model)
                model.clear()
        assert (await cache.stats()).entries == len(model)
        await cache.close()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operations)
    def check(steps: list[tuple[str, Any]]) -> None:
        asyncio.run(compare(steps))

    check()


@pytest.mark.docker
async def test_the_image_of_compose_serves_as_a_store(
    make_settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from testcontainers.community.redis import RedisContainer
    from testcontainers.core.config import testcontainers_config

    # Its reaper is one more image to pull; the context manager removes the container.
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    with RedisContainer("redis:7-bookworm") as container:
        url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
        cache = open_cache(make_settings(cache_url=url))
        await cache.put_many({b"k": b"v"})
        assert await cache.get_many([b"k", b"l"]) == [b"v", None]
        assert await cache.clear() == 1
        await cache.close()
