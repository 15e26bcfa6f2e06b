"""A teacher-gateway as a process of its own, with its HTTP API, for programs that are asked to use it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

_START_SECONDS = 120
_HTTP = re.compile(r"HTTP on (http://[0-9.]+:[0-9]+)")
_GRPC = re.compile(r"listening on ([0-9.]+:[0-9]+)")


@dataclass(frozen=True)
class GatewayProcess:
    """Where it answers: ``url`` over HTTP, ``target`` over gRPC."""

    url: str
    target: str


@contextmanager
def gateway_process(folder: Path, **settings: str) -> Iterator[GatewayProcess]:
    """``teacher-gateway serve`` in ``folder``, on free ports, until the end of the block."""
    environment = {
        "GATEWAY_PORT": "0",
        "GATEWAY_HTTP_PORT": "0",
        "CACHE_URL": f"sqlite:///{folder}/cache.sqlite",
        "TORCH_THREADS": "1",
    }
    environment |= {name.upper(): value for name, value in settings.items()}
    command = [str(Path(sys.executable).parent / "teacher-gateway"), "serve"]
    log = folder / "gateway.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | environment, stderr=file, cwd=folder)
    try:
        yield _addresses(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _addresses(process: "subprocess.Popen[bytes]", log: Path) -> GatewayProcess:
    """As it says itself, once it serves."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        said = log.read_text()
        http, grpc = _HTTP.search(said), _GRPC.search(said)
        if http and grpc and _is_ready(http[1]):
            return GatewayProcess(http[1], grpc[1])
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
