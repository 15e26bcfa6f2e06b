import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from latentforge.core.settings import load_settings
from latentforge.inference.main import build
from latentforge.inference.rest.bodies import parse_json
from latentforge.inference.settings import InferenceSettings

JSON = {"content-type": "application/json"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return build(load_settings(InferenceSettings, checkpoints_dir=tmp_path)).app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield client


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
    assert "more than 512 strings" in response.json()["error"]["message"]


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
