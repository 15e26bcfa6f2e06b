"""The local server refuses what the published API refuses; else tests against it would prove nothing."""

from typing import Any

import httpx
import pytest

from latentforge.gateway.backends.venice.messages import VENICE_PARAMETERS
from tools.venice_server.app import MODEL
from tools.venice_server.schema import VeniceParameters


def body(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "a"}
    return {"model": MODEL, "messages": [message], "max_completion_tokens": 1, "logprobs": True} | changes


async def post(venice: Any, content: Any, **headers: str) -> httpx.Response:
    key = {"Authorization": f"Bearer {venice.control.key}"}
    async with httpx.AsyncClient(headers=key | headers, verify=False) as client:
        return await client.post(f"{venice.url}/chat/completions", json=content)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"echo": True}, "echo"),
        ({"prompt": "a"}, "prompt"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"venice_parameters": {"unknown": 1}}, "venice_parameters.unknown"),
        ({"venice_parameters": {"enable_web_search": False}}, "venice_parameters.enable_web_search"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "extra": 1}]}, "messages.0.extra"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 0}, "seed"),
        ({"stream": True}, "stream"),
        ({"fallbacks": [{"model": "other"}]}, "fallbacks"),
        ({"max_completion_tokens": 100_000}, "maximum context"),
    ],
)
async def test_what_the_schema_does_not_have_is_refused(byte_venice: Any, changes: Any, field: str) -> None:
    answer = await post(byte_venice, body(**changes))
    assert answer.status_code == 400
    assert field in answer.text


async def test_keys_models_bodies_and_credit_are_checked(byte_venice: Any) -> None:
    assert (await post(byte_venice, body(), Authorization="Bearer other")).status_code == 401
    assert (await post(byte_venice, body(model="other"))).status_code == 404
    assert (await post(byte_venice, body(), **{"Content-Type": "text/plain"})).status_code == 415
    long = [{"role": "user", "content": "a" * 2_000_000}]
    assert (await post(byte_venice, body(messages=long))).status_code == 413
    byte_venice.control.balance = 0
    assert (await post(byte_venice, body())).status_code == 402


async def get_models(venice: Any, query: str = "", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(headers=headers, verify=False) as client:
        return await client.get(f"{venice.url}/models{query}")


async def test_models_are_listed_to_everybody_with_the_published_fields(byte_venice: Any) -> None:
    for headers in ({}, {"Authorization": f"Bearer {byte_venice.control.key}"}):
        answer = (await get_models(byte_venice, **headers)).json()
        assert (answer["object"], answer["type"], len(answer["data"])) == ("list", "text", 2)
    model = answer["data"][0]
    assert set(model) == {"id", "object", "type", "owned_by", "created", "model_spec"}
    assert set(model["model_spec"]) == {
        "availableContextTokens",
        "capabilities",
        "constraints",
        "description",
        "maxCompletionTokens",
        "modelSource",
        "name",
        "offline",
        "pricing",
        "privacy",
        "traits",
    }
    assert model["model_spec"]["pricing"] == {
        "input": {"usd": 0.15, "diem": 0.15},
        "output": {"usd": 0.6, "diem": 0.6},
    }
    assert (await get_models(byte_venice, "?type=image")).json()["data"] == []
    assert (await get_models(byte_venice, "?type=poem")).status_code == 400
    assert (await get_models(byte_venice, Authorization="Bearer other")).status_code == 401


async def test_answers_have_the_published_fields_and_echo_the_parameters(byte_venice: Any) -> None:
    answer = (await post(byte_venice, body(top_logprobs=3, venice_parameters=dict(VENICE_PARAMETERS)))).json()
    assert set(answer) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "prompt_logprobs",
        "venice_parameters",
    }
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "finish_reason", "stop_reason", "message", "logprobs"}
    (token,) = choice["logprobs"]["content"]
    assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
    assert len(token["top_logprobs"]) == 3
    assert answer["venice_parameters"] == VeniceParameters(**VENICE_PARAMETERS).echo()
    byte_venice.control.shape = "flat"
    (choice,) = (await post(byte_venice, body(top_logprobs=3))).json()["choices"]
    assert set(choice["logprobs"]) == {"token", "logprob", "bytes", "top_logprobs"}


async def test_venices_own_prompt_is_added_unless_it_is_switched_off(byte_venice: Any) -> None:
    with_it = (await post(byte_venice, body())).json()
    without = (await post(byte_venice, body(venice_parameters={"include_venice_system_prompt": False}))).json()
    assert with_it["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"]


async def test_a_minute_has_so_many_requests(byte_venice: Any) -> None:
    byte_venice.control.requests_per_minute = 2
    answers = [await post(byte_venice, body()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert float(answers[2].headers["x-ratelimit-reset-requests"]) > 1e9
    assert float(answers[2].headers["x-ratelimit-reset-tokens"]) <= 60


async def test_more_than_20_failures_in_30_seconds_block_for_30_seconds(byte_venice: Any) -> None:
    now = [1000.0]
    byte_venice.control.clock = lambda: now[0]
    for _ in range(20):
        assert (await post(byte_venice, body(unknown=1))).status_code == 400
    assert (await post(byte_venice, body())).status_code == 200
    assert (await post(byte_venice, body(unknown=1))).status_code == 400
    blocked = await post(byte_venice, body())
    assert blocked.status_code == 429
    assert "Too many failed attempts (> 20)" in blocked.text
    now[0] += 30
    assert (await post(byte_venice, body())).status_code == 200
