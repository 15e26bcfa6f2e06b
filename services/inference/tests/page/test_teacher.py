"""POST /teacher where no teacher can answer; tests/browser asks a real one."""

from typing import Any

import pytest

BODY = {"prompt": "def", "token_ids": [5, 6]}


async def test_without_a_setting_it_says_which_one(page_server: Any, publish: Any) -> None:
    publish(1)
    async with page_server() as (client, _):
        answer = await client.post("/teacher", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_configured")
        assert "GATEWAY_TARGET" in answer.json()["error"]["message"]


async def test_an_absent_gateway_is_said_in_words(page_server: Any, publish: Any) -> None:
    publish(1)
    async with page_server(gateway_target="127.0.0.1:9") as (client, _):
        assert (await client.get("/page/config")).json() == {"teacher": True, "training": False}
        answer = await client.post("/teacher", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "teacher_unavailable")
        assert "no teacher-gateway answers at 127.0.0.1:9" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"token_ids": []}, 422, "token_ids"),
        ({"token_ids": [-1]}, 422, "token_ids.0"),
        ({"token_ids": [300]}, 400, "token_ids"),
        ({"prompt": [300]}, 400, "prompt"),
        ({"prompt": "x" * 100_000}, 400, "prompt"),
        ({"top": 0}, 422, "top"),
        ({"model": "demo/step-00000009"}, 404, "model"),
    ],
)
async def test_wrong_bodies_name_the_field(
    page_server: Any, publish: Any, change: Any, status: int, param: str
) -> None:
    publish(1)
    async with page_server(gateway_target="127.0.0.1:9") as (client, _):
        answer = await client.post("/teacher", json=BODY | change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
