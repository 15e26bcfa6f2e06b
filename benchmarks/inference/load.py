"""Clients of a server in one light process of its own: plain sockets and asyncio, so that they take little of a core.

Usage: python -m benchmarks.inference.load < JOB.json; the job is a :class:`LoadJob`'s fields, what is printed a JSON
list of :class:`Answered`'s. Imports the standard library alone.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

_JSON = "application/json"


@dataclass(frozen=True)
class LoadJob:
    """What clients do to a server for some time.

    Attributes:
        host, port: of the server.
        bodies: of POST /generate; each client begins with another one and goes through them again and again.
        clients: connections that ask for one after another.
        seconds: after which no client asks again.
        flooding: connections besides that post prompts of ``flood_bytes`` bytes, one after another.
        flood_bytes: of such a prompt.
        half_open: connections besides that are opened, begin a body, and never send the rest; what the server closes is
            opened again.
        headers: of every request.
    """

    host: str
    port: int
    bodies: list[dict[str, Any]]
    clients: int
    seconds: float
    flooding: int = 0
    flood_bytes: int = 4_000_000
    half_open: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """One answer; seconds of this process's monotonic clock, and what the body says; 0 for a connection that failed."""

    began: float
    ended: float
    status: int
    tokens: int = 0
    server_ms: float = 0.0
    checkpoint: str = ""
    kind: str = "request"


def _head(job: LoadJob, length: int) -> str:
    return f"POST /generate HTTP/1.1\r\nhost: {job.host}\r\ncontent-type: {_JSON}\r\ncontent-length: {length}\r\n"


async def _post(job: LoadJob, streams: Any, body: bytes) -> tuple[int, bytes]:
    reader, writer = streams
    more = "".join(f"{name}: {value}\r\n" for name, value in job.headers.items())
    writer.write(f"{_head(job, len(body))}{more}\r\n".encode() + body)
    await writer.drain()
    head_lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head_lines[1:] if ": " in line)
    return int(head_lines[0].split()[1]), await reader.readexactly(int(headers.get("content-length", 0)))


async def _ask(job: LoadJob, index: int, until: float, answers: list[Answered]) -> None:
    streams: Any = None
    turn = index
    bodies = [json.dumps(body).encode() for body in job.bodies]
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            if streams is None:
                streams = await asyncio.open_connection(job.host, job.port)
                began = time.monotonic()
            status, content = await _post(job, streams, bodies[turn % len(bodies)])
        except (OSError, asyncio.IncompleteReadError):
            answers.append(Answered(began, time.monotonic(), 0))
            streams = None
            continue
        ended = time.monotonic()
        turn += job.clients
        if status != 200:
            answers.append(Answered(began, ended, status))
            await asyncio.sleep(0.01)
            continue
        answer = json.loads(content)
        tokens, checkpoint = answer["usage"]["completion_tokens"], answer["checkpoint"]
        answers.append(Answered(began, ended, status, tokens, answer["milliseconds"], checkpoint))
    if streams is not None:
        streams[1].close()


async def _flood(job: LoadJob, until: float, answers: list[Answered]) -> None:
    body = json.dumps({"prompt": "x " * (job.flood_bytes // 2), "max_tokens": 8}).encode()
    while time.monotonic() < until:
        began = time.monotonic()
        status = 0
        with suppress(OSError, asyncio.IncompleteReadError):
            streams = await asyncio.open_connection(job.host, job.port)
            try:
                status, _ = await _post(job, streams, body)
            finally:
                streams[1].close()
        answers.append(Answered(began, time.monotonic(), status, kind="flood"))
        await asyncio.sleep(0.01)


async def _stay_half_open(job: LoadJob, until: float) -> None:
    while time.monotonic() < until:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(job.host, job.port)
            writer.write(f"{_head(job, 100_000)}\r\n".encode() + b'{"prompt": "')
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(), max(0.0, until - time.monotonic()))
            writer.close()
        await asyncio.sleep(0.05)


async def run(job: LoadJob) -> list[Answered]:
    """Does it, and gives every answer."""
    answers: list[Answered] = []
    until = time.monotonic() + job.seconds
    hostile = [asyncio.create_task(_stay_half_open(job, until)) for _ in range(job.half_open)]
    hostile += [asyncio.create_task(_flood(job, until, answers)) for _ in range(job.flooding)]
    await asyncio.gather(*(_ask(job, index, until, answers) for index in range(job.clients)))
    if hostile:
        # What answers late is not waited for.
        _, waiting = await asyncio.wait(hostile, timeout=max(0.0, until - time.monotonic()) + 0.1)
        for task in waiting:
            task.cancel()
    return answers


if __name__ == "__main__":
    found = asyncio.run(run(LoadJob(**json.load(sys.stdin))))
    json.dump([asdict(answer) for answer in found], sys.stdout)
