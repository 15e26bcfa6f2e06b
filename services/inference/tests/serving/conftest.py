"""A real server as a process, and clients that keep asking it."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentforge.model.engine import offline
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.sampling import SamplingParams
from latentforge.snapshots.snapshot import DecodingMemory, Snapshot, load_snapshot

_PROMPTS = ("", "def main():", "x = [1, 2", "import os\nimport sys\n" * 12, "#", "class A:\n    def f(self" * 3)


@dataclass
class ServerProcess:
    """``inference serve`` over a folder of checkpoints."""

    folder: Path
    log: Path
    settings: dict[str, str]
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        environment = {
            "CHECKPOINTS_DIR": str(self.folder),
            "INFERENCE_POLL_SECONDS": "0.05",
            "INFERENCE_DEVICE": "cpu",
            "TORCH_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "LOG_LEVEL": "WARNING",
        }
        command = [str(Path(sys.executable).parent / "inference"), "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment, **self.settings}, stderr=log, cwd=self.log.parent
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def make_server(checkpoints: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server with settings; its log stands in the test's folder."""
    servers: list[ServerProcess] = []

    def make(**settings: Any) -> ServerProcess:
        given = {f"INFERENCE_{name.upper()}": str(value) for name, value in settings.items()}
        servers.append(server := ServerProcess(checkpoints, tmp_path / "server.log", given))
        server.start()
        return server

    yield make
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.kill()


async def until_served(server: ServerProcess, step: int, seconds: float = 120) -> None:
    """Waits until it serves this step of run "demo"."""
    end = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=server.url) as client:
        while True:
            assert server.process is not None
            assert server.process.poll() is None, server.log.read_text()
            try:
                served = (await client.get("/health")).json()["checkpoint"]
            except httpx.TransportError:
                served = None
            if served == f"demo/step-{step:08d}":
                return
            assert time.monotonic() < end, f"step {step} is not served but {served}"
            await asyncio.sleep(0.02)


async def get(url: str, path: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url) as client:
        answer: dict[str, Any] = (await client.get(path)).json()
        return answer


async def until_idle(url: str, seconds: float = 60) -> None:
    """Waits until nothing runs or is queued."""
    end = time.monotonic() + seconds
    load = await get(url, "/ready")
    while load["running"] or load["queued"]:
        assert time.monotonic() < end, load
        await asyncio.sleep(0.05)
        load = await get(url, "/ready")


@dataclass
class Asked:
    """One request and what came of it."""

    body: dict[str, Any]
    status: int
    answer: dict[str, Any]


@dataclass
class Clients:
    """Ask again and again, each on a connection of its own, until they are told to stop.

    Attributes:
        asked: all that was answered.
        lost: requests whose connection broke.
    """

    url: str
    max_tokens: int = 40
    asked: list[Asked] = field(default_factory=list)
    lost: int = 0
    _stopping: bool = False
    _tasks: "list[asyncio.Task[None]]" = field(default_factory=list)

    def start(self, num: int) -> None:
        self._tasks += [asyncio.create_task(self._ask(random.Random(seed))) for seed in range(num)]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, chance: random.Random) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while not self._stopping:
                body = {
                    "prompt": chance.choice(_PROMPTS),
                    "max_tokens": chance.randrange(1, self.max_tokens),
                    "seed": chance.randrange(2**32),
                    "temperature": chance.choice([0, 0.8, 1]),
                    "top_p": chance.choice([0.9, 1]),
                }
                try:
                    response = await client.post("/generate", json=body)
                except httpx.TransportError:
                    self.lost += 1
                    await asyncio.sleep(0.05)
                    continue
                self.asked.append(Asked(body, response.status_code, response.json()))
                if response.status_code != 200:
                    await asyncio.sleep(0.02)


def check_each_is_what_its_checkpoint_writes_alone(asked: list[Asked], folder: Path) -> set[str]:
    """Compares the ids of all answers; gives the checkpoints that answered."""
    snapshots: dict[str, Snapshot] = {}
    for each in asked:
        assert each.status == 200, each
        name = each.answer["checkpoint"]
        if name not in snapshots:
            snapshots[name] = load_snapshot(folder / name, torch.device("cpu"), DecodingMemory(1, exact=True))
        snapshot, body = snapshots[name], each.body
        params = SamplingParams(**{key: body[key] for key in ("seed", "temperature", "top_p")})
        request = GenerationRequest(
            snapshot.decoding,
            snapshot.encode(body["prompt"]),
            body["max_tokens"],
            params,
            frozenset({snapshot.decoding.eos_id}),
        )
        [alone] = offline.run([request])
        assert each.answer["token_ids"] == alone.token_ids, each
        assert each.answer["finish_reason"] == alone.finish_reason, each
        assert each.answer["text"] == snapshot.decode(alone.token_ids), each
    return set(snapshots)
