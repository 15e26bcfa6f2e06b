"""No other site can make a visitor's browser pin a checkpoint or ask the teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

JSON = {"content-type": "application/json"}
PIN = '{"checkpoint": "demo/step-00000001"}'
PATHS = [("/checkpoints/pin", {"checkpoint": "demo/step-00000001"}), ("/checkpoints/unpin", {"run": "demo"})]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        JSON | {"origin": "https://elsewhere.test"},
        {"content-type": "text/plain", "origin": "https://elsewhere.test"},
        JSON | {"origin": "null"},
        JSON | {"origin": "http://page.test:81"},
        JSON | {"sec-fetch-site": "cross-site"},
        JSON | {"sec-fetch-site": "same-site"},
    ],
)
async def test_other_sites_are_refused(
    page_server: Any, publish: Any, checkpoints: Path, path: str, body: Any, headers: Any
) -> None:
    publish(1)
    async with page_server() as (client, _):
        answer = await client.post(path, content=json.dumps(body), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert not (checkpoints / "demo" / "pinned").exists()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://page.test"},
        # Behind a proxy that speaks TLS.
        {"origin": "https://page.test", "sec-fetch-site": "same-origin"},
        {"content-type": "application/json; charset=utf-8"},
    ],
)
async def test_its_own_page_and_programs_are_not(
    page_server: Any, publish: Any, checkpoints: Path, headers: Any
) -> None:
    publish(1)
    async with page_server() as (client, _):
        answer = await client.post("/checkpoints/pin", content=PIN, headers=JSON | headers)
        assert answer.status_code == 200, answer.text
        assert (checkpoints / "demo" / "pinned").exists()


async def test_origins_that_may_call_the_api_may_still_not_pin(
    page_server: Any, publish: Any, checkpoints: Path
) -> None:
    publish(1)
    async with page_server(inference_cors_origins="*") as (client, _):
        headers = JSON | {"origin": "https://elsewhere.test", "sec-fetch-site": "cross-site"}
        answer = await client.post("/checkpoints/pin", json={"checkpoint": "demo/step-00000001"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert not (checkpoints / "demo" / "pinned").exists()


async def test_the_description_says_what_the_pages_own_requests_may_be_answered(page_server: Any) -> None:
    async with page_server() as (client, _):
        paths = (await client.get("/openapi.json")).json()["paths"]
    for path, _ in PATHS:
        assert {"200", "401", "403", "404", "409", "413", "422"} <= paths[path]["post"]["responses"].keys()
    assert {"404", "409", "502", "503", "504"} <= paths["/teacher"]["post"]["responses"].keys()
    assert {"404", "502", "503"} <= paths["/training"]["get"]["responses"].keys()
