"""The command line before a real server: it shows what the server's own answer is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.inference.cli.main import app

runner = CliRunner()
OPTIONS = ["--max-tokens", "12", "--seed", "5", "--temp", "0.8", "--top-p", "0.95"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_infer_shows_what_the_server_writes_streamed_or_not(api: Any) -> None:
    body = {"prompt": "def f(", "max_tokens": 12, "seed": 5, "temperature": 0.8, "top_p": 0.95}
    answer = api.client.post("/generate", json=body).json()
    for flag in ("--stream", "--no-stream"):
        result = runner.invoke(app, ["infer", "--url", api.url, "--prompt", "def f(", *OPTIONS, flag])
        assert result.exit_code == 0, result.output
        text, _, summary = result.stdout.removesuffix("\n").rpartition("\n")
        assert text == answer["text"]
        tokens, steps = answer["usage"]["completion_tokens"], answer["usage"]["latent_steps"]
        assert summary.startswith(f"[{answer['checkpoint']}, {tokens} tokens in {steps} latent steps, ")
        assert summary.endswith(f"seed 5, {answer['finish_reason']}]")


def test_chat_shows_what_the_server_answers_and_goes_on_from_it(api: Any) -> None:
    def answer(*said: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
        body = {"messages": messages, "max_tokens": 12, "seed": 5, "temperature": 0.8, "top_p": 0.95}
        text: str = api.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        return text

    result = runner.invoke(app, ["chat", "--url", api.url, *OPTIONS], input="hello\nand then?\n")
    assert result.exit_code == 0, result.output
    first = answer("hello")
    assert result.stdout == f"{first}\n{answer('hello', first, 'and then?')}\n"


def test_what_a_server_refuses_is_said(
    serve_api: Callable[..., AbstractContextManager[Any]], publish: Callable[..., Path]
) -> None:
    publish(1)
    with serve_api() as served:
        result = runner.invoke(app, ["chat", "--url", served.url], input="hello\n")
        assert result.exit_code == 1
        assert f"error: {served.url} answered 400: demo/step-00000001 has no chat template" in result.stderr
        result = runner.invoke(app, ["infer", "--url", served.url, "--prompt", "x" * 100_000])
        assert result.exit_code == 1
        assert "prompt has 100000 bytes" in result.stderr
