import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentforge.core.settings import load_settings
from latentforge.inference.main import Service, build
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.snapshot import load_snapshot

Publish = Callable[..., Path]
Hold = Callable[..., "Gate"]
Running = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, Service]]]
HELD = {"prompt": "def", "max_tokens": 40, "seed": 5}


class Gate(threading.Event):
    """Lets requests past their second step when set; counts steps."""

    steps = 0


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """Makes the current snapshot's texts stop before their third step until the gate is set.

    With ``seconds``, every step from the third on takes so long until then: others step beside them.
    """
    gate = Gate()

    def hold_now(service: Service, seconds: float | None = None) -> Gate:
        assert service.registry.current is not None
        decoding = service.registry.current.decoding
        step = decoding.step

        def held(texts: Any) -> Any:
            gate.steps += 1
            if gate.steps > 2:
                assert gate.wait(seconds or 20) or seconds
            return step(texts)

        monkeypatch.setattr(decoding, "step", held)
        return gate

    yield hold_now
    gate.set()


@pytest.fixture
def running(checkpoints: Path) -> Running:
    """Starts the app as the server does, with a quick poll."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
        values = {f"inference_{name}": value for name, value in changes.items()}
        fixed = {"checkpoints_dir": checkpoints, "inference_poll_seconds": 0.02, "inference_device": "cpu"}
        service = build(load_settings(InferenceSettings, torch_threads=1, **fixed | values))
        transport = httpx.ASGITransport(app=service.app)
        async with (
            service.app.router.lifespan_context(service.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client, service

    return start


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


async def serving(client: httpx.AsyncClient, step: int) -> None:
    async def is_served() -> bool:
        return bool((await client.get("/health")).json()["checkpoint"] == f"demo/step-{step:08d}")

    await until(is_served)


async def ask(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/generate", json={"prompt": "import os", "max_tokens": 16, "seed": 1} | body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_health_says_what_it_waits_for_until_the_first_checkpoint_is_there(
    running: Running, publish: Publish, checkpoints: Path
) -> None:
    async with running() as (client, _):
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["waiting_for"] == f"a first checkpoint in {checkpoints}"
        assert (await client.get("/ready")).status_code == 503
        refused = await client.post("/generate", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "no_checkpoint"
        assert str(checkpoints) in refused.json()["error"]["message"]
        publish(1)
        await serving(client, 1)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).json()["ready"] is True


async def test_an_answer_names_its_checkpoint_and_counts_what_it_did(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, service):
        await serving(client, 1)
        answer = await ask(client)
        assert service.registry.current is not None
        snapshot = service.registry.current
        assert answer["checkpoint"] == "demo/step-00000001"
        assert answer["text"] == snapshot.decode(answer["token_ids"])
        assert answer["usage"] == {
            "prompt_tokens": len(snapshot.encode("import os")),
            "completion_tokens": len(answer["token_ids"]),
            "latent_steps": 4,
        }
        assert len(answer["token_ids"]) == 16
        assert answer["finish_reason"] == "length"
        assert answer["tokens_per_second"] == pytest.approx(4 * answer["latent_steps_per_second"])


async def test_a_newer_checkpoint_answers_without_a_restart(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        first = await ask(client)
        publish(2)
        await serving(client, 2)
        second = await ask(client)
        assert second["checkpoint"] == "demo/step-00000002"
        assert second["token_ids"] != first["token_ids"]
        status = (await client.get("/status")).json()
        assert [(swap["from"], swap["to"]) for swap in status["swaps"]] == [
            (None, "demo/step-00000001"),
            ("demo/step-00000001", "demo/step-00000002"),
        ]
        assert status["current"]["step"] == 2


async def test_a_request_in_flight_ends_on_the_snapshot_it_began_with(
    running: Running, publish: Publish, hold: Hold
) -> None:
    alone = load_snapshot(publish(1, max_chunks=1024), torch.device("cpu"))
    asked = HELD | {"max_tokens": 2000}
    async with running() as (client, service):
        await serving(client, 1)
        expected = await ask(client, **asked)
        gate = hold(service, seconds=0.02)
        pending = asyncio.create_task(ask(client, **asked))
        await until(lambda: service.engine.running == 1)
        publish(2)
        await serving(client, 2)
        assert (await ask(client, **HELD))["checkpoint"] == "demo/step-00000002"
        assert not pending.done()
        gate.set()
        answer = await pending
        assert answer["checkpoint"] == "demo/step-00000001"
        assert answer["token_ids"] == expected["token_ids"]
        assert answer["text"] == alone.decode(answer["token_ids"])


async def test_a_torn_checkpoint_is_reported_and_the_old_one_answers(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        publish(2, tokenizer_fingerprint="0000")

        async def is_quarantined() -> bool:
            return bool((await client.get("/health")).json()["quarantined"])

        await until(is_quarantined)
        health = await client.get("/health")
        assert health.status_code == 200
        [bad] = health.json()["quarantined"]
        assert bad["checkpoint"] == "demo/step-00000002"
        assert "fingerprint" in bad["reason"]
        assert (await ask(client))["checkpoint"] == "demo/step-00000001"


async def test_the_same_seed_repeats_and_another_differs(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        first, again, other = [await ask(client, seed=seed) for seed in (1, 1, 2)]
        assert first["token_ids"] == again["token_ids"]
        assert first["token_ids"] != other["token_ids"]
        unseeded = await ask(client, seed=None)
        assert (await ask(client, seed=unseeded["seed"]))["token_ids"] == unseeded["token_ids"]


@pytest.mark.parametrize("temperature", [1e-320, 1e-39, 1e-6])
async def test_a_tiny_temperature_takes_the_likeliest(running: Running, publish: Publish, temperature: float) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        greedy = await ask(client, temperature=0)
        assert (await ask(client, temperature=temperature))["token_ids"] == greedy["token_ids"]


async def test_five_at_once_get_what_they_get_one_by_one(running: Running, publish: Publish) -> None:
    publish(1)
    bodies = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(["", "a", "def f(", "x = [1,", "#"])]
    async with running(slots=5) as (client, _):
        await serving(client, 1)
        alone = [await ask(client, max_tokens=40, **body) for body in bodies]
        together = await asyncio.gather(*(ask(client, max_tokens=40, **body) for body in bodies))
        assert [answer["token_ids"] for answer in together] == [answer["token_ids"] for answer in alone]
        assert len({tuple(answer["token_ids"]) for answer in alone}) == 5


async def test_what_ends_an_answer_ends_it_where_special_tokens_are_parsed(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        whole = await ask(client, max_tokens=40)
        ids = whole["token_ids"]
        end = next(token_id for at, token_id in enumerate(ids) if at > 9 and token_id not in ids[:at])
        publish(2, weights=1, end_ids=(end,))
        await serving(client, 2)
        assert (await ask(client, max_tokens=40))["token_ids"] == ids
        ended = await ask(client, max_tokens=40, parse_special_tokens=True)
        assert ended["token_ids"] == ids[: ids.index(end)]
        assert ended["finish_reason"] == "stop"
        assert ended["usage"]["completion_tokens"] == ids.index(end)
        assert ended["usage"]["latent_steps"] < whole["usage"]["latent_steps"]
        assert whole["text"].startswith(ended["text"])


async def test_a_stop_string_ends_the_text_before_it(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        whole = await ask(client, max_tokens=80)
        word = whole["text"][30:32]
        cut = await ask(client, max_tokens=80, stop=word)
        assert cut["text"] == whole["text"][: whole["text"].index(word)]
        assert cut["finish_reason"] == "stop"
        assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])]
        assert cut["usage"]["latent_steps"] < whole["usage"]["latent_steps"]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "prompt", "prompt is missing"),
        ({"prompt": 3}, "prompt", "prompt is 3"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens", "max_tokens is 0: .*greater than or equal to 1"),
        ({"prompt": "x", "temperature": -1}, "temperature", "temperature is -1: .*greater than or equal to 0"),
        ({"prompt": "x", "top_p": 1.5}, "top_p", r"top_p is 1\.5: .*less than or equal to 1"),
        ({"prompt": "x", "top_k": -2}, "top_k", "top_k is -2"),
        ({"prompt": "x", "min_p": 2}, "min_p", "min_p is 2: .*less than or equal to 1"),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "repetition_penalty is 0: .*greater than 0"),
        ({"prompt": "x", "presence_penalty": 3}, "presence_penalty", "presence_penalty is 3"),
        ({"prompt": "x", "frequency_penalty": -3}, "frequency_penalty", "frequency_penalty is -3"),
        ({"prompt": "x", "logit_bias": {"7": 101}}, "logit_bias.7", "less than or equal to 100"),
        ({"prompt": "x", "logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300 items"),
        ({"prompt": "x", "seed": -1}, "seed", "seed is -1"),
        ({"prompt": "x", "stop": [""]}, "stop.0", "at least 1 character"),
        ({"prompt": "x", "max_token": 3}, "max_token", "max_token is not a known field"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature", "temperature is nan"),
        ({"prompt": "\ud800"}, "prompt", "prompt is"),
        ({"prompt": None}, "prompt", "prompt is None: .*valid string"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens", "max_new_tokens is 0: .*greater than or equal to 1"),
        (
            {"prompt": "x", "max_tokens": 3, "max_new_tokens": 4},
            "max_new_tokens",
            "max_tokens is 3 and max_new_tokens 4, but they are the same thing; send one of them",
        ),
        ({"prompt": "x", "max_token": None}, "max_token", "max_token is not a known field"),
        ({"prompt": {"a": 1}}, "prompt", r"prompt is \{'a': 1\}: .*valid string"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop", "at most 16 items"),
    ],
)
async def test_bad_input_names_field_value_and_what_is_allowed(
    running: Running, publish: Publish, body: dict[str, Any], param: str, said: str
) -> None:
    async with running() as (client, _):
        response = await client.post(
            "/generate", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert response.status_code == 422
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert re.search(said, error["message"]), error["message"]


async def test_the_seeds_names_and_nulls_are_understood(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)
        body = {"prompt": "def main():", "max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 1}
        answer = await client.post("/generate", json=body)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 12
        same = await client.post("/generate", json=body | {"max_tokens": 12, "top_k": None, "stop": None})
        assert same.json()["token_ids"] == answer.json()["token_ids"]
        nulls = dict.fromkeys(["max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop"])
        default = await client.post("/generate", json={"prompt": "x", **nulls})
        assert default.json()["usage"]["completion_tokens"] <= 64
        assert default.status_code == 200


async def test_every_setting_of_sampling_is_used(running: Running, publish: Publish) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)

        async def ids(**how: Any) -> list[int]:
            body = {"prompt": "def main():", "max_tokens": 24, "seed": 1, "temperature": 5, **how}
            answer = await client.post("/generate", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["token_ids"]  # type: ignore[no-any-return]

        plain = await ids()
        assert await ids(**dict.fromkeys(["min_p", "repetition_penalty", "presence_penalty", "logit_bias"])) == plain
        greedy = await ids(temperature=0)
        assert await ids(min_p=1) == await ids(top_k=1) == await ids(temperature=5e-38) == greedy != plain
        assert await ids(repetition_penalty=50) != plain != await ids(frequency_penalty=2)
        assert await ids(presence_penalty=2) != plain
        assert set(await ids(logit_bias={"9": 100})) == {9}
        assert plain[0] not in await ids(logit_bias={str(plain[0]): -100})
        refused = await client.post("/generate", json={"prompt": "x", "logit_bias": {"1000000": 1}})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "logit_bias"
        assert "names id 1000000" in refused.json()["error"]["message"]


async def test_the_schema_says_the_second_name_and_that_null_is_allowed(running: Running) -> None:
    async with running() as (client, _):
        schema = (await client.get("/openapi.json")).json()["components"]["schemas"]["GenerateRequest"]
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["max_new_tokens"]["anyOf"] == schema["properties"]["max_tokens"]["anyOf"]
    optional = {name: kind for name, kind in schema["properties"].items() if name != "prompt"}
    assert all({"type": "null"} in kind["anyOf"] for kind in optional.values())


async def test_at_most_ten_wrong_fields_are_named(running: Running) -> None:
    async with running() as (client, _):
        wrong = await client.post("/generate", json={"prompt": "x"} | {f"f{i}": 1 for i in range(30)})
        assert wrong.status_code == 422
        message = wrong.json()["error"]["message"]
        assert "f9 is not a known field; and 20 more" in message
        assert "f10" not in message


async def test_a_body_that_is_no_json_and_a_path_that_is_not_there_answer_in_the_same_shape(running: Running) -> None:
    async with running() as (client, _):
        torn = await client.post("/generate", content='{"prompt": ', headers={"content-type": "application/json"})
        assert (torn.status_code, torn.json()["error"]["code"]) == (400, "invalid_json")
        lost = await client.get("/nowhere")
        assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
        wrong = await client.get("/generate")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_what_does_not_fit_the_context_is_refused_with_both_numbers(running: Running, publish: Publish) -> None:
    publish(1, max_chunks=8)
    async with running() as (client, service):
        await serving(client, 1)
        prompt = "q" * 29
        assert service.registry.current is not None
        length = len(service.registry.current.encode(prompt))
        response = await client.post("/generate", json={"prompt": prompt})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "prompt"
        assert f"has {length} tokens, but demo/step-00000001 takes at most 28" in error["message"]
        response = await client.post("/generate", json={"prompt": "", "max_tokens": 33})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "max_tokens"
        assert "33" in error["message"]
        assert "room for 32" in error["message"]
        assert len((await ask(client, prompt="", max_tokens=32, temperature=0))["token_ids"]) == 32


async def test_a_prompt_is_refused_by_its_bytes_before_it_is_tokenised(
    running: Running, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1, max_chunks=8)
    async with running() as (client, service):
        await serving(client, 1)
        snapshot = service.registry.current
        assert snapshot is not None
        assert snapshot.max_prompt_bytes == 28 * snapshot.tokenizer.longest_token_bytes
        longest = "é" * (snapshot.max_prompt_bytes // 2)
        counted = await client.post("/generate", json={"prompt": longest})
        assert "tokens, but demo/step-00000001 takes at most 28" in counted.json()["error"]["message"]
        monkeypatch.setattr("latentforge.snapshots.snapshot.Snapshot.encode", lambda *_: pytest.fail("tokenised"))
        response = await client.post("/generate", json={"prompt": longest + "é"})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "prompt"
        said = (
            f"prompt has {len(longest.encode()) + 2} bytes, but demo/step-00000001 takes at most 28 tokens, "
            f"which are at most {snapshot.max_prompt_bytes} bytes"
        )
        assert said in error["message"]


async def test_a_full_queue_answers_429_with_retry_after(running: Running, publish: Publish, hold: Hold) -> None:
    publish(1)
    async with running(slots=1, queue_limit=1) as (client, service):
        await serving(client, 1)
        gate = hold(service)
        pending = [asyncio.create_task(ask(client, **HELD)) for _ in range(2)]
        await until(lambda: gate.steps == 3 and service.engine.queued == 1)
        refused = await client.post("/generate", json={"prompt": "x"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        # Full is not ill: it answers, and this one says for how long.
        ready = await client.get("/ready")
        assert ready.status_code == 200
        assert (ready.json()["running"], ready.json()["queued"]) == (1, 1)
        assert (await client.get("/health")).status_code == 200
        gate.set()
        first, second = await asyncio.gather(*pending)
        assert first["token_ids"] == second["token_ids"]
        assert (await client.get("/ready")).status_code == 200


async def test_a_request_that_takes_too_long_answers_504(running: Running, publish: Publish, hold: Hold) -> None:
    publish(1)
    async with running(request_timeout=0.2) as (client, service):
        await serving(client, 1)
        gate = hold(service)
        asyncio.get_running_loop().call_later(0.3, gate.set)
        response = await client.post("/generate", json=HELD)
        assert response.status_code == 504
        assert "INFERENCE_REQUEST_TIMEOUT" in response.json()["error"]["message"]
        assert service.engine.running == 0


async def test_a_client_that_hangs_up_cancels_its_generation(running: Running, publish: Publish, hold: Hold) -> None:
    publish(1)
    async with running() as (client, service):
        await serving(client, 1)
        gate = hold(service)
        hang_up = asyncio.Event()
        body = [{"type": "http.request", "body": json.dumps(HELD | {"max_tokens": 1000}).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/generate",
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        request = asyncio.create_task(service.app(scope, receive, send))
        await until(lambda: service.engine.running == 1)
        await until(lambda: gate.steps == 3)
        hang_up.set()
        async with asyncio.timeout(5):
            await request
        gate.set()
        await until(lambda: service.engine.running == 0)
        assert gate.steps == 3


async def test_a_failure_of_the_server_answers_500_with_the_request_id(
    running: Running, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    async with running() as (client, _):
        await serving(client, 1)

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr("latentforge.inference.rest.completion.prepare", fail)
        response = await client.post("/generate", json={"prompt": "x"}, headers={"x-request-id": "r7"})
        assert response.status_code == 500
        assert "r7" in response.json()["error"]["message"]
        assert "secret" not in response.text


async def test_the_documentation_is_served(running: Running) -> None:
    async with running() as (client, _):
        assert (await client.get("/docs")).status_code == 200
        assert "/generate" in (await client.get("/openapi.json")).json()["paths"]
