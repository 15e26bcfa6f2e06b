"""GET /training: whatever answers at the trainer's address, the page gets a status or a sentence."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

STATUS = {
    "run": "demo",
    "stage": "student",
    "step": 3,
    "of": 10,
    "losses": {"ce": 2.5},
    "eta": 4.5,
    "tokens_per_s": 100.0,
    "teacher_wait_seconds": 0.25,
    "train": [{"step": 1, "ce": 3.0}],
    "held_out": [{"step": 0, "ce": 8.0}],
    "done": False,
    "error": None,
}


@asynccontextmanager
async def answering(body: bytes, status: int = 200) -> AsyncIterator[str]:
    """An HTTP server that gives every request one answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def test_the_status_is_passed_on_without_what_is_not_known(page_server: Any) -> None:
    said = json.dumps(STATUS | {"secret": 1}).encode()
    async with answering(said) as url, page_server(inference_trainer_status_url=f"{url}/") as (client, _):
        answer = await client.get("/training")
        assert (answer.status_code, answer.json()) == (200, STATUS)
        assert (await client.get("/page/config")).json() == {"teacher": False, "training": True}


async def test_a_trainer_that_knows_less_is_understood(page_server: Any) -> None:
    said = b'{"run": "old", "stage": "autoencoder"}'
    async with answering(said) as url, page_server(inference_trainer_status_url=url) as (client, _):
        answer = (await client.get("/training")).json()
        assert (answer["run"], answer["train"], answer["tokens_per_s"]) == ("old", [], None)


async def test_without_a_setting_it_says_which_one(page_server: Any) -> None:
    async with page_server() as (client, _):
        answer = await client.get("/training")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_configured")
        assert "INFERENCE_TRAINER_STATUS_URL" in answer.json()["error"]["message"]


async def test_a_trainer_that_is_gone_is_said_so(page_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with page_server(inference_trainer_status_url="http://127.0.0.1:9") as (client, _):
        answer = await client.get("/training")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "trainer_unavailable")
        assert "no trainer answers at http://127.0.0.1:9" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"<html>", 200, (502, "not_a_trainer")),
        (b'{"run": "a"}', 200, (502, "not_a_trainer")),
        (json.dumps(STATUS | {"train": [{"step": 1}] * 2001}).encode(), 200, (502, "not_a_trainer")),
        (b" " * (2**20 + 1), 200, (502, "not_a_trainer")),
        (b"{}", 500, (503, "trainer_unavailable")),
    ],
    ids=["html", "fields", "points", "bytes", "failure"],
)
async def test_what_is_no_status_is_refused(
    page_server: Any, body: bytes, status: int, expected: tuple[int, str]
) -> None:
    async with answering(body, status) as url, page_server(inference_trainer_status_url=url) as (client, _):
        answer = await client.get("/training")
        assert (answer.status_code, answer.json()["error"]["code"]) == expected
