"""Stores that break and heal again while a gateway uses them."""

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit

import numpy as np
import redis

from benchmarks.gateway.counting_proxy import CountingProxy
from benchmarks.gateway.servers import Server, Servers

# No file of a gateway grows beyond it while its disk is full.
_FULL_BYTES = 64 << 10
_BYTES_PER_BROKEN_ONE = 256
_SQLITE = "sqlite:///cache.sqlite"


@dataclass(frozen=True)
class StoreFault:
    """A cache, and how it breaks and heals; both are told the gateway."""

    url: str
    begin: Callable[[Server], object]
    end: Callable[[Server], object]


def _killed(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    server = servers.start_redis()
    return StoreFault(
        _url(server.port),
        lambda _: os.kill(server.child.pid, signal.SIGKILL),
        lambda _: servers.start_redis(server.port),
    )


def _frozen(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    pid = (server := servers.start_redis()).child.pid
    return StoreFault(_url(server.port), lambda _: os.kill(pid, signal.SIGSTOP), lambda _: os.kill(pid, signal.SIGCONT))


def _failed_over(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    """The address leads to a replica that took over, and back; what is connected stays so."""
    ports = [servers.start_redis().port for _ in range(2)]
    address = stack.enter_context(CountingProxy(ports[0]))
    clients = [stack.enter_context(redis.Redis(port=port)) for port in ports]
    clients[1].replicaof("127.0.0.1", ports[0])

    def fail_over(old: int, new: int) -> None:
        clients[new].replicaof("NO", "ONE")
        clients[old].replicaof("127.0.0.1", ports[new])
        address.target_port = ports[new]

    return StoreFault(_url(address.port), lambda _: fail_over(0, 1), lambda _: fail_over(1, 0))


def _redis_full(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    port = servers.start_redis().port
    client = stack.enter_context(redis.Redis(port=port))
    return StoreFault(
        _url(port), lambda _: client.config_set("maxmemory", 1), lambda _: client.config_set("maxmemory", 0)
    )


def _locked(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    other: list[sqlite3.Connection] = []

    def begin(gateway: Server) -> None:
        other.append(sqlite3.connect(path, timeout=60, check_same_thread=False))
        other[0].execute("BEGIN EXCLUSIVE")

    return StoreFault(_SQLITE, begin, lambda _: other[0].close())


def _sqlite_full(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    """Writes fail as with ``ulimit -f``."""

    def limit(gateway: Server, num_bytes: int) -> None:
        prlimit(gateway.child.pid, RLIMIT_FSIZE, (num_bytes, RLIM_INFINITY))

    return StoreFault(_SQLITE, lambda g: limit(g, _FULL_BYTES), lambda g: limit(g, RLIM_INFINITY))


def _corrupt(servers: Servers, stack: ExitStack, path: Path) -> StoreFault:
    """Bytes of the file and of its log are others; at the end those that still are get their old values."""
    random = np.random.default_rng(0)
    broken: list[tuple[Path, int, int, int]] = []

    def begin(gateway: Server) -> None:
        for file in (path, path.with_name(f"{path.name}-wal")):
            with file.open("r+b", buffering=0) as opened:
                for start in range(0, file.stat().st_size, _BYTES_PER_BROKEN_ONE):
                    place = start + int(random.integers(_BYTES_PER_BROKEN_ONE))
                    before = os.pread(opened.fileno(), 1, place)
                    if before:
                        new = before[0] ^ int(random.integers(1, 256))
                        os.pwrite(opened.fileno(), bytes([new]), place)
                        broken.append((file, place, before[0], new))

    def end(gateway: Server) -> None:
        for file, place, before, new in broken:
            with file.open("r+b", buffering=0) as opened:
                if os.pread(opened.fileno(), 1, place) == bytes([new]):
                    os.pwrite(opened.fileno(), bytes([before]), place)

    return StoreFault(_SQLITE, begin, end)


FAULTS: dict[str, Callable[[Servers, ExitStack, Path], StoreFault]] = {
    "redis_killed": _killed,
    "redis_frozen": _frozen,
    "redis_failed_over": _failed_over,
    "redis_full": _redis_full,
    "sqlite_locked": _locked,
    "sqlite_full": _sqlite_full,
    "sqlite_corrupt": _corrupt,
}


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"
