import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

from latentforge.inference.cli.decode_speed import BenchResults
from latentforge.inference.cli.main import app
from latentforge.inference.rest.completion import prepare
from latentforge.inference.rest.schemas.generate import GenerateRequest
from latentforge.model.engine import offline
from latentforge.model.engine.requests import Written
from latentforge.snapshots.snapshot import load_snapshot

Publish = Callable[..., Path]
runner = CliRunner()


@pytest.fixture(autouse=True)
def _plain_logging_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for command in ("serve", "local"):
        monkeypatch.setattr(f"latentforge.inference.cli.{command}.configure_logging", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_infer_prints_the_text_and_where_it_comes_from(publish: Publish) -> None:
    snapshot = load_snapshot(publish(3), torch.device("cpu"))
    request = GenerateRequest(prompt="def", max_tokens=12, temperature=0.9, top_p=0.9, seed=4)
    text = snapshot.decode(offline.run([prepare(snapshot, request).generation])[0].token_ids)
    options = ["--prompt", "def", "--max-tokens", "12", "--temp", "0.9", "--top-p", "0.9", "--seed", "4"]
    result = runner.invoke(app, ["infer", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(text)
    assert "[demo/step-00000003, 12 tokens in 3 latent steps, " in result.stdout


def test_infer_without_a_checkpoint_says_how_to_make_one() -> None:
    result = runner.invoke(app, ["infer", "--prompt", "x"])
    assert result.exit_code == 1
    assert "no checkpoint to load: waiting for a first checkpoint in checkpoints" in result.stderr
    assert "make toy train-ae train-student" in result.stderr


def test_infer_with_only_a_bad_checkpoint_says_why(publish: Publish) -> None:
    publish(1, tokenizer_fingerprint="0000")
    result = runner.invoke(app, ["infer"])
    assert result.exit_code == 1
    assert "fingerprint" in result.stderr


def test_infer_refuses_wrong_sampling_by_name() -> None:
    result = runner.invoke(app, ["infer", "--top-p", "1.5"])
    assert result.exit_code == 2
    assert "top_p is 1.5" in result.stderr


def test_infer_says_when_no_server_answers(taken_port: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = runner.invoke(app, ["infer", "--url", url])
    assert result.exit_code == 1
    assert f"no inference server answers at {url}" in result.stderr


class _Answers(BaseHTTPRequestHandler):
    """Answers POST /generate at once, and /v1/completions in two events, to those who have the key if there is one."""

    key: str | None = None
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append({"path": self.path, **body})
        if self.key and self.headers["authorization"] != f"Bearer {self.key}":
            self._send(401, {"error": {"message": "no key"}})
        elif self.path == "/generate":
            self._send(200, self._whole())
        else:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": nothing new yet\n\n")
            for event in self._events():
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    @staticmethod
    def _events() -> list[dict[str, Any]]:
        model = {"model": "demo/step-00000001", "usage": None}
        first = {"index": 0, "text": "from ", "token_ids": [2, 3], "finish_reason": None}
        second = {"index": 0, "text": "afar", "token_ids": [4], "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        return [
            model | {"choices": [first]},
            model | {"choices": [second]},
            model | {"choices": [], "usage": usage},
        ]

    @staticmethod
    def _whole() -> dict[str, Any]:
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "latent_steps": 1}
        return {
            "text": "from afar",
            "token_ids": [2, 3],
            "checkpoint": "demo/step-00000001",
            "finish_reason": "length",
            "usage": usage,
            "seed": 1,
            "milliseconds": 1.0,
            "latent_steps_per_second": 1.0,
            "tokens_per_second": 2.0,
        }

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment that answers nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_infer_asks_a_server_of_this_machine_past_every_proxy(host: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = runner.invoke(app, ["infer", "--url", f"http://{host}:{server.server_address[1]}"])
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("from afar\n")


@pytest.fixture
def server() -> Iterator[str]:
    """A server's address; what it was asked is in ``_Answers.asked``."""
    _Answers.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_infer_shows_a_servers_text_as_it_comes_and_what_is_known_at_its_end(server: str) -> None:
    result = runner.invoke(app, ["infer", "--url", server, "--prompt", "p", "--max-tokens", "3", "--seed", "9"])
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first == "from afar"
    assert re.fullmatch(r"\[demo/step-00000001, 3 tokens in 2 latent steps, [\d.]+ tokens/s, seed 9, length\]", second)
    (asked,) = _Answers.asked
    assert asked["path"] == "/v1/completions"
    assert (asked["prompt"], asked["max_tokens"], asked["seed"], asked["stream"]) == ("p", 3, 9, True)


def test_infer_waits_for_the_whole_text_where_it_is_told_to(server: str) -> None:
    result = runner.invoke(app, ["infer", "--url", server, "--no-stream"])
    assert result.stdout.startswith("from afar\n[demo/step-00000001, 2 tokens in 1 latent steps, 2000.0 tokens/s")
    runner.invoke(app, ["infer", "--url", server, "--parse-special-tokens"])
    assert [asked["path"] for asked in _Answers.asked] == ["/generate", "/generate"]


def test_infer_sends_the_key_of_the_environment_and_never_shows_it(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Answers, "key", "k3y-of-the-server")
    result = runner.invoke(app, ["infer", "--url", server])
    assert result.exit_code == 1
    assert result.stderr == f"error: {server} answered 401: no key\n"
    monkeypatch.setenv("INFERENCE_API_KEY", "k3y-of-the-server,another")
    result = runner.invoke(app, ["infer", "--url", server])
    assert result.exit_code == 0, result.output
    assert "k3y" not in result.output


def test_infer_says_what_failed_while_a_server_wrote(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Answers, "_events", lambda _: [{"error": {"message": "it took too long"}}])
    result = runner.invoke(app, ["infer", "--url", server])
    assert result.exit_code == 1
    assert result.stderr == f"error: {server} failed while it wrote: it took too long\n"


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_text_is_the_same_streamed_or_not(publish: Publish, stream: str) -> None:
    publish(3)
    options = ["--prompt", "def", "--max-tokens", "12", "--seed", "4"]
    texts = {runner.invoke(app, ["infer", *options, flag]).stdout.rpartition("[")[0] for flag in (stream, "--stream")}
    assert len(texts) == 1


def test_ctrl_c_ends_infer_with_130(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(3)

    def interrupted(*_: object) -> Iterator[Written]:
        yield Written([5])
        raise KeyboardInterrupt

    monkeypatch.setattr("latentforge.inference.cli.local.offline.stream", interrupted)
    result = runner.invoke(app, ["infer", "--prompt", "def"])
    assert result.exit_code == 130
    assert result.stderr == ""
    assert result.stdout.endswith("\n")


def test_infer_sends_the_key_that_the_server_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str | None] = []

    class Noting(_Answers):
        def do_POST(self) -> None:
            received.append(self.headers["authorization"])
            super().do_POST()

    with ThreadingHTTPServer(("127.0.0.1", 0), Noting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for keys in ("", "k-1", "k-2,k-3"):
            monkeypatch.setenv("INFERENCE_API_KEY", keys)
            result = runner.invoke(app, ["infer", "--url", f"http://127.0.0.1:{server.server_address[1]}"])
            assert result.exit_code == 0, result.output
        server.shutdown()
    assert received == [None, "Bearer k-1", "Bearer k-2"]


UNUSABLE = [
    ("all_proxy", "socks5://127.0.0.1:9"),
    ("https_proxy", "foo://127.0.0.1:9"),
    ("all_proxy", "http://a:b/c@d"),
]


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize(("variable", "proxy"), UNUSABLE, ids=["socks", "scheme", "malformed"])
def test_infer_asks_past_proxies_that_cannot_be_used_or_says_which(
    variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = runner.invoke(app, ["infer", "--url", f"http://127.0.0.1:{server.server_address[1]}"])
        server.shutdown()
    assert result.stdout.startswith("from afar\n"), result.output
    result = runner.invoke(app, ["infer", "--url", "http://inference.example:7860"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: a proxy of the environment (")
    assert variable in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("proxied")
def test_infer_says_when_a_proxy_stands_before_the_server() -> None:
    result = runner.invoke(app, ["infer", "--url", "http://inference.example:7860"])
    assert result.exit_code == 1
    assert "http_proxy sends this through a proxy, no_proxy=inference.example would not" in result.stderr


def test_serve_on_a_taken_port_names_it_and_the_way_out(taken_port: int) -> None:
    result = runner.invoke(app, ["serve", "--port", str(taken_port)])
    assert result.exit_code == 2
    said = f"error: port {taken_port} on 127.0.0.1 is taken by another program; stop it, or choose another with --port"
    assert result.stderr.splitlines() == [f"{said} or INFERENCE_PORT"]


def test_serve_refuses_a_wrong_setting_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_QUEUE_LIMIT", "-1")
    result = runner.invoke(app, ["serve"])
    assert result.exit_code == 2
    assert "INFERENCE_QUEUE_LIMIT is '-1'" in result.stderr


def test_bench_prints_a_table_and_writes_the_same_results(publish: Publish, tmp_path: Path) -> None:
    publish(1)
    (tmp_path / "prompts.txt").write_text("def f(\n\nimport\n")
    result = runner.invoke(app, ["bench", "--max-tokens", "20", "--repeats", "2"])
    assert result.exit_code == 0, result.output
    [path] = (tmp_path / "results").glob("bench_*.json")
    record = BenchResults.read(path)
    results = record.by_id
    names = {"decode_tokens_per_s", "latent_steps_per_s", "compression_ratio"}
    assert set(results) == names | {f"{name}_nucleus" for name in names}
    assert {suffix: (s["temperature"], s["top_p"]) for suffix, s in record.sampling.items()} == {
        "": (1.0, 1.0),
        "_nucleus": (0.8, 0.95),
    }
    decode = results["decode_tokens_per_s"]
    assert decode.value is not None
    assert decode.baseline_value is not None
    assert decode.ratio == pytest.approx(decode.value / decode.baseline_value)
    assert decode.low is not None
    assert decode.high is not None
    assert decode.low <= decode.high
    assert results["compression_ratio"].value == 4
    assert record.checkpoint == "demo/step-00000001"
    assert record.num_prompts == 2
    for entry in results.values():
        assert f"{entry.value:.2f}" in result.stdout
    assert "weights are random" in result.stdout


def test_bench_measures_one_sampling_where_it_is_told_one(publish: Publish, tmp_path: Path) -> None:
    publish(1)
    (tmp_path / "prompts.txt").write_text("def f(\n")
    result = runner.invoke(app, ["bench", "--max-tokens", "8", "--repeats", "1", "--temp", "0.5"])
    assert result.exit_code == 0, result.output
    [path] = (tmp_path / "results").glob("bench_*.json")
    record = BenchResults.read(path)
    assert set(record.by_id) == {"decode_tokens_per_s", "latent_steps_per_s", "compression_ratio"}
    assert record.sampling[""]["temperature"] == 0.5


def test_bench_without_prompts_names_the_file(publish: Publish) -> None:
    publish(1)
    result = runner.invoke(app, ["bench", "--prompts-file", "none.txt"])
    assert result.exit_code == 1
    assert "PROMPTS_FILE none.txt cannot be read" in result.stderr


def test_bench_refuses_more_tokens_than_there_is_room_for(publish: Publish, tmp_path: Path) -> None:
    publish(1, max_chunks=8)
    (tmp_path / "prompts.txt").write_text("import\n")
    result = runner.invoke(app, ["bench", "--max-tokens", "33", "--repeats", "1"])
    assert result.exit_code == 1
    assert "MAX_TOKENS is 33" in result.stderr
