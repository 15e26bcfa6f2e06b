import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from latentforge.core.settings import load_settings
from latentforge.inference.main import build
from latentforge.inference.rest.bodies import MAX_BODY_BYTES, parse_json
from latentforge.inference.settings import InferenceSettings

JSON = {"content-type": "application/json"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return build(load_settings(InferenceSettings, checkpoints_dir=tmp_path)).app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield client


async def test_a_body_that_tells_its_length_is_refused_before_it_is_read(app: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        pytest.fail("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % (MAX_BODY_BYTES + 1))]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert b"x-request-id" in dict(sent[0]["headers"])
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
    assert f"more than {MAX_BODY_BYTES} bytes" in error["message"]


async def test_a_streamed_body_is_read_no_further_than_its_bound(client: httpx.AsyncClient) -> None:
    pieces = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal pieces
        for _ in range(1000):
            pieces += 1
            yield b" " * 2**18

    response = await client.post("/generate", content=stream(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert pieces == MAX_BODY_BYTES // 2**18 + 1


async def test_a_body_of_just_the_bound_is_read(client: httpx.AsyncClient) -> None:
    body = json.dumps({"prompt": "a"}).encode()
    body = body.replace(b"a", b"a" * (MAX_BODY_BYTES - len(body) + 1))
    assert len(body) == MAX_BODY_BYTES
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.json()["error"]["code"] == "no_checkpoint"


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "x", ' + ", ".join(f'"f{i}": 1' for i in range(300_000)) + "}",
        '{"prompt": "x", "stop": [' + ", ".join("1" * 600_000) + "]}",
        '{"prompt": "x", "stop": [' + ", ".join(["[1]"] * 600_000) + "]}",
        '{"prompt": "x", "stop": [' + ", ".join(['""'] * 600_000) + "]}",
        "[" * 2_000_000,
    ],
    ids=["fields", "numbers", "lists", "strings", "brackets"],
)
async def test_a_body_of_very_many_values_is_not_even_parsed(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("latentforge.inference.rest.bodies.json.loads", lambda _: pytest.fail("parsed"))
        response = await client.post("/generate", content=body, headers=JSON)
    assert response.status_code == 422
    assert "more than 256 strings" in response.json()["error"]["message"]


def test_what_stands_in_strings_is_not_counted() -> None:
    body = {"prompt": '[{"a": 1}, ' * 100_000, "stop": ['"', "\\", "\u00e9", "\n"], "seed": None}
    assert parse_json(json.dumps(body).encode()) == body
    assert parse_json(json.dumps(body, ensure_ascii=False, indent=4).encode() + b"\n") == body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"prompt": ', "Expecting value"),
        (b'{"prompt": "' + b"a" * 100_000, "Unterminated string"),
        (b'{"prompt": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 10_000, "recursion"),
        (b'{"seed": ' + b"1" * 10_000 + b"}", "Exceeds the limit"),
    ],
)
async def test_a_body_that_is_no_json_is_said(client: httpx.AsyncClient, body: bytes, said: str) -> None:
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "invalid_json"
    assert said in error["message"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "text/plain; charset=utf-8"}],
    ids=["none", "what curl -d says", "text"],
)
async def test_a_body_is_json_whatever_its_content_type_says(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    refused = await client.post("/generate", content=b'{"prompt": "x", "seed": -1}', headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "seed")
    good = await client.post("/generate", content=b'{"prompt": "x"}', headers=headers)
    assert good.json()["error"]["code"] == "no_checkpoint"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_a_body_may_be_in_every_unicode_encoding(client: httpx.AsyncClient, encoding: str) -> None:
    values = {"prompt": "na\u00efve", "seed": 1}
    body = json.dumps(values, ensure_ascii=False).encode(encoding)
    assert parse_json(body) == values
    response = await client.post("/generate", content=body, headers=JSON)
    assert response.json()["error"]["code"] == "no_checkpoint"


async def test_a_long_name_of_an_unknown_field_is_not_sent_back_whole(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate", json={"prompt": "x", "a" * 10**6: 1})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "a" * 79 + "…"
    assert len(response.content) < 1000
