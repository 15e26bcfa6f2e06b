"""OpenAI's own client, against a real server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest


@pytest.fixture
def client(api: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_completions_whole_and_streamed(api: Any, client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "latentforge", "prompt": "def f(", "max_tokens": 20, "seed": 1}
    whole = client.completions.create(**body, logprobs=2, echo=True)
    [choice] = whole.choices
    assert choice.text.startswith("def f(")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == 6 + 20
    assert whole.usage is not None
    assert whole.usage.total_tokens == 26
    assert whole.system_fingerprint == f"demo/step-00000001@{api.snapshot.digest[:12]}"
    events = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "def f(" + "".join(event.choices[0].text for event in events[:-1]) == choice.text
    assert events[-1].usage == whole.usage


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 20,
        "seed": 1,
    }
    whole = client.chat.completions.create(**body, logprobs=True, top_logprobs=1)
    message = whole.choices[0].message
    events = list(client.chat.completions.create(**body, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == message.content
    assert events[-1].choices[0].finish_reason == "length"
    # What the client keeps of an answer can be sent back.
    again = body | {"messages": [*body["messages"], message.model_dump(), {"role": "user", "content": "And?"}]}
    assert client.chat.completions.create(**again).choices[0].message.role == "assistant"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo/step-00000001", "latentforge"]
    assert client.models.retrieve("demo/step-00000001").owned_by == "latentforge"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo", prompt="x", suffix="y")
    assert (refused.value.param, refused.value.code) == ("suffix", "invalid_value")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4o", prompt="x")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id


def test_an_error_midway_is_raised(api: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = api.snapshot.decoding.step, []

    def fail_at_second(texts: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return step(texts)

    monkeypatch.setattr(api.snapshot.decoding, "step", fail_at_second)
    stream = client.completions.create(
        model="demo", prompt="x", max_tokens=40, stream=True, extra_body={"ignore_eos": True}
    )
    with pytest.raises(openai.APIError, match="model failed"):
        list(stream)
