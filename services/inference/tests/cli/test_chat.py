import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

from latentforge.inference.cli.local import answer_here
from latentforge.inference.cli.main import app
from latentforge.inference.cli.options import request_of
from latentforge.inference.cli.writing import show
from latentforge.snapshots.snapshot import load_snapshot

Publish = Callable[..., Path]
runner = CliRunner()
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(autouse=True)
def _plain_logging_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("latentforge.inference.cli.local.configure_logging", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


def _messages(*said: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]


def _talk(lines: list[str], *options: str) -> Any:
    return runner.invoke(
        app, ["chat", "--max-tokens", "8", "--seed", "3", *options], input="".join(f"{line}\n" for line in lines)
    )


def test_each_answer_goes_on_from_all_that_was_said_until_a_reset(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    place = publish(1, chat_template=TEMPLATE)
    snapshot = load_snapshot(place, torch.device("cpu"))

    def answer(*said: str) -> str:
        request = request_of(prompt="", max_tokens=8, seed=3)
        return show(answer_here(snapshot, _messages(*said), request), stream=False)[0]

    first = answer("hello")
    second = answer("hello", first, "and then?")
    capsys.readouterr()
    result = _talk(["hello", "and then?", "", "/reset", "hello", "/quit", "never said"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{first}\n{second}\n{first}\n"
    assert result.stderr.count("[demo/step-00000001, ") == 3
    assert "(a new chat)" in result.stderr


def test_the_end_of_the_input_ends_the_chat(publish: Publish) -> None:
    publish(1, chat_template=TEMPLATE)
    result = _talk([])
    assert (result.exit_code, result.stdout) == (0, "")


def test_a_chat_that_has_grown_too_long_says_so_and_can_be_reset(publish: Publish) -> None:
    publish(1, chat_template=TEMPLATE, max_chunks=16)
    result = _talk(["x" * 300, "/reset", "hi"])
    assert result.exit_code == 0, result.output
    assert "reads at most 60; /reset begins another" in result.stderr
    assert result.stderr.count("[demo/step-00000001, ") == 1


def test_a_checkpoint_without_a_template_is_refused_before_anything_is_said(publish: Publish) -> None:
    publish(1)
    result = _talk(["hello"])
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr
    assert result.stdout == ""


class _AnswersChats(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()
        for text in ("hel", "lo"):
            choice = {"index": 0, "delta": {"content": text}, "token_ids": [1], "finish_reason": "stop"}
            self.wfile.write(f"data: {json.dumps({'model': 'demo/step-00000001', 'choices': [choice]})}\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_is_told_the_whole_chat() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _AnswersChats) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        result = _talk(["hi", "again"], "--url", url, "--system", "Be brief.")
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert result.stdout == "hello\nhello\n"
    said = [[message["content"] for message in asked["messages"]] for asked in _AnswersChats.asked]
    assert said == [["Be brief.", "hi"], ["Be brief.", "hi", "hello", "again"]]


def test_ctrl_c_ends_a_chat_with_130(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(1, chat_template=TEMPLATE)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentforge.inference.cli.chat._read", interrupted)
    result = _talk([])
    assert result.exit_code == 130
