import json
import resource
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from fastapi import FastAPI

from latentforge.core.settings import load_settings
from latentforge.inference.edge.bodies import BodyLimits
from latentforge.inference.main import build
from latentforge.inference.settings import InferenceSettings

from .conftest import Serve, read_all, read_answer

JSON = {"content-type": "application/json"}
MAX = 4 * 2**20


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return build(load_settings(InferenceSettings, checkpoints_dir=tmp_path)).app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield client


def head(length: int, path: str = "/generate", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{more}\r\n".encode()


async def test_a_body_that_tells_its_length_is_refused_before_it_is_read(app: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        assert sent, "the body was read before it was refused"
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % (MAX + 1))]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    answered = dict(sent[0]["headers"])
    assert b"x-request-id" in answered
    assert answered[b"connection"] == b"close"
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
    assert f"more than {MAX} bytes" in error["message"]
    assert sent[-1]["more_body"] is False


async def test_a_streamed_body_is_refused_at_its_bound(client: httpx.AsyncClient) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 2**18

    response = await client.post("/generate", content=stream(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_a_body_of_just_the_bound_is_read(client: httpx.AsyncClient) -> None:
    body = json.dumps({"prompt": "a"}).encode()
    body = body.replace(b"a", b"a" * (MAX - len(body) + 1))
    assert len(body) == MAX
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.json()["error"]["code"] == "no_checkpoint"


async def test_the_bound_is_a_setting(tmp_path: Path) -> None:
    app = build(load_settings(InferenceSettings, checkpoints_dir=tmp_path, inference_max_body_bytes=2048)).app
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        assert (await client.post("/generate", json={"prompt": "a" * 1900})).status_code == 503
        assert (await client.post("/generate", json={"prompt": "a" * 2048})).status_code == 413


def test_a_single_prompt_bounds_its_body_by_what_the_model_takes() -> None:
    limits = BodyLimits(MAX, 1.0, lambda: 400_000)
    assert limits.of("/generate") == 6 * 400_000 + 65536
    assert limits.of("/v1/completions") == MAX
    # What a model of a few tokens refuses, it refuses in its own words.
    assert BodyLimits(MAX, 1.0, lambda: 100).of("/generate") == 2**20
    assert BodyLimits(MAX, 1.0, lambda: None).of("/generate") == MAX
    assert BodyLimits(1000, 1.0, lambda: 400_000).of("/generate") == 1000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_all_before_it_reads_sees_the_413(serve: Serve, chunked: bool) -> None:
    piece = b" " * 2**20
    with serve() as running, running.connect() as connection:
        if chunked:
            connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(40):
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            connection.sendall(b"0\r\n\r\n")
        else:
            connection.sendall(head(40 * 2**20))
            for _ in range(40):
                connection.sendall(piece)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in answer
    assert b"connection: close" in answer.lower()


def test_a_client_that_asks_before_it_sends_is_refused_without_sending(serve: Serve) -> None:
    with serve() as running, running.connect() as connection:
        connection.sendall(head(200_000_000, more="expect: 100-continue\r\n"))
        assert read_answer(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("told", [b'{"prompt"', b""])
def test_a_half_sent_body_is_answered_408_and_closed(serve: Serve, told: bytes) -> None:
    with serve(body_seconds=0.3) as running, running.connect() as connection:
        connection.sendall(head(1000) + told)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "body_timeout"
    assert f"{len(told)} bytes" in error["message"]
    assert "INFERENCE_BODY_SECONDS" in error["message"]


def test_bytes_that_trickle_in_do_not_move_the_deadline(serve: Serve) -> None:
    with serve(body_seconds=0.5) as running, running.connect() as connection:
        connection.sendall(head(10_000))
        connection.settimeout(0.05)
        sent, answer = 0, b""
        while not answer:
            connection.sendall(b" ")
            sent += 1
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                assert sent < 1000
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_many_half_sent_large_bodies_take_bounded_memory_and_hold_up_nobody(serve: Serve) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    num = 120
    process = psutil.Process()
    with serve(body_seconds=60) as running, ExitStack() as stack:
        httpx.get(f"{running.url}/status")
        before = process.memory_info().rss
        body = b" " * (MAX - 1)

        def send_half() -> None:
            connection = stack.enter_context(running.connect())
            connection.sendall(head(MAX))
            connection.settimeout(1)
            # What the server does not read stays with its sender.
            try:
                connection.sendall(body)
            except TimeoutError:
                return

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda _: send_half(), range(num)))
        assert process.memory_info().rss - before < 200 * 2**20
        assert httpx.post(f"{running.url}/generate", json={"prompt": "x"}).status_code == 503
        assert httpx.get(f"{running.url}/status").status_code == 200
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == files[1]


def test_permits_of_large_bodies_come_back(serve: Serve) -> None:
    with serve() as running, httpx.Client(base_url=running.url) as client:
        for _ in range(40):
            response = client.post("/generate", json={"prompt": "a" * 3_000_000})
            assert response.json()["error"]["code"] == "no_checkpoint"


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(serve: Serve) -> None:
    with serve() as running:
        for _ in range(30):
            with running.connect() as connection:
                connection.sendall(head(MAX) + b" " * 200_000)
        until(lambda: not running.service.drain.in_flight and not running.server.server_state.connections)
        response = httpx.post(f"{running.url}/generate", json={"prompt": "a" * 3_000_000})
        assert response.json()["error"]["code"] == "no_checkpoint"


def until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before)
