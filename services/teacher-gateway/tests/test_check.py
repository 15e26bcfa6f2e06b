import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.gateway.cli import app

KEY = "sk-very-secret"


@dataclass
class ModelsServer:
    """A real HTTP server that lists models to whoever has the key."""

    url: str = ""
    body: Any = field(
        default_factory=lambda: {
            "data": [
                {"id": "qwen3-5-9b", "model_spec": {"capabilities": {"supportsLogProbs": True}}},
                {"id": "mute-70b", "model_spec": {"capabilities": {"supportsLogProbs": False}}},
            ]
        }
    )
    wait: threading.Event | None = None
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def models_server() -> Iterator[ModelsServer]:
    state = ModelsServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.paths.append(self.path)
            if state.wait is not None:
                state.wait.wait(10)
            good = self.headers.get("Authorization") == f"Bearer {KEY}"
            found = self.path in ("/api/v1/models", "/v1/models")
            body = json.dumps(state.body).encode()
            self.send_response((200 if good else 401) if found else 404)
            self.send_header("Content-Length", str(len(body)))
            # The caller may have given up by now.
            with contextlib.suppress(ConnectionError):
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    if state.wait is not None:
        state.wait.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Runs ``teacher-gateway check`` with an environment, and a .env of these lines if there are any."""
    monkeypatch.chdir(tmp_path)

    def run(dotenv: str | None = None, **environment: str) -> tuple[int, list[str]]:
        if dotenv is not None:
            (tmp_path / ".env").write_text(dotenv)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, ["check"])
        assert not result.exception or isinstance(result.exception, SystemExit), result.exception
        assert KEY not in result.output
        return result.exit_code, result.output.splitlines()

    return run


def test_a_missing_dotenv_is_said_with_how_to_make_it(run_check: Any) -> None:
    code, lines = run_check(TEACHER_BACKEND="venice")
    assert code == 1
    assert "VENICE_API_KEY is not set and there is no .env; run: cp .env.example .env" in lines[0]
    assert "TEACHER_BACKEND=venice is not in this version; use one of: embedded, transformers" in lines[-1]


def test_a_dotenv_without_the_key_is_said(run_check: Any) -> None:
    code, lines = run_check("TEACHER_BACKEND=venice\nVENICE_API_KEY=\n")
    assert code == 1
    assert "VENICE_API_KEY is missing in .env" in lines[0]


def test_a_good_key_finds_the_model(run_check: Any, models_server: ModelsServer) -> None:
    dotenv = f"TEACHER_BACKEND=venice\nVENICE_API_KEY={KEY}\nVENICE_BASE_URL={models_server.url}/api/v1\n"
    code, lines = run_check(dotenv)
    assert code == 1
    assert [line[:2] for line in lines] == ["ok", "ok", "FA"]
    assert "lists 2 models" in lines[0]
    assert "qwen3-5-9b is listed and gives logprobs" in lines[1]
    assert models_server.paths == ["/api/v1/models"]


@pytest.mark.parametrize("model", ["mute-70b", "absent"])
def test_a_model_that_gives_no_logprobs_is_said_with_those_that_do(
    run_check: Any, models_server: ModelsServer, model: str
) -> None:
    _, lines = run_check(
        TEACHER_BACKEND="venice",
        VENICE_API_KEY=KEY,
        VENICE_BASE_URL=f"{models_server.url}/api/v1",
        VENICE_MODEL=model,
    )
    assert lines[1].startswith(f"FAIL  VENICE_MODEL={model}")
    assert "qwen3-5-9b" in lines[1]


def test_a_wrong_key_is_said(run_check: Any, models_server: ModelsServer) -> None:
    code, lines = run_check(
        TEACHER_BACKEND="venice", VENICE_API_KEY="sk-wrong", VENICE_BASE_URL=f"{models_server.url}/api/v1"
    )
    assert code == 1
    assert lines[0].startswith("FAIL  VENICE_API_KEY is wrong")
    assert "401" in lines[0]
    assert "sk-wrong" not in "".join(lines)


@pytest.mark.parametrize("url", ["x", "ftp://host/v1", "http://", "http://host:port"])
def test_a_malformed_url_is_said_with_what_is_allowed(run_check: Any, url: str) -> None:
    code, lines = run_check(TEACHER_BACKEND="vllm-remote", VLLM_REMOTE_URL=url)
    assert code == 1
    assert f"VLLM_REMOTE_URL malformed {url!r}" in lines[0]
    assert "http(s)://host[:port]" in lines[0]
    assert "TEACHER_BACKEND=vllm-remote is not in this version" in lines[-1]


def test_an_unknown_host_and_a_closed_port_are_said(run_check: Any, free_port: Callable[[], int]) -> None:
    for url in ("http://no-such-host.invalid", f"http://127.0.0.1:{free_port()}"):
        _, lines = run_check(TEACHER_BACKEND="vllm-remote", VLLM_REMOTE_URL=url)
        assert lines[0].startswith(f"FAIL  VLLM_REMOTE_URL={url} cannot be reached")


def test_a_server_that_does_not_answer_is_said(
    run_check: Any, models_server: ModelsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.check._SECONDS", 0.2)
    models_server.wait = threading.Event()
    _, lines = run_check(TEACHER_BACKEND="vllm-local", VLLM_LOCAL_URL=models_server.url)
    assert "did not answer within 0.2 s" in lines[0]


def test_a_vllm_server_is_asked_under_v1_and_missing_keys_are_said(run_check: Any, models_server: ModelsServer) -> None:
    _, lines = run_check(TEACHER_BACKEND="vllm-remote", VLLM_REMOTE_URL=models_server.url)
    assert "VLLM_REMOTE_API_KEY is not set, and the server wants one" in lines[0]
    _, lines = run_check(VLLM_REMOTE_URL=f"{models_server.url}/v1", VLLM_REMOTE_API_KEY=KEY)
    assert lines[0].startswith("ok")
    assert "qwen3-5-9b" in lines[0]
    assert models_server.paths == ["/v1/models"] * 2


def test_an_answer_that_is_no_list_of_models_is_said(run_check: Any, models_server: ModelsServer) -> None:
    models_server.body = {"hello": 1}
    _, lines = run_check(TEACHER_BACKEND="vllm-remote", VLLM_REMOTE_URL=models_server.url, VLLM_REMOTE_API_KEY=KEY)
    assert "something else than a list of models" in lines[0]


def test_an_unset_remote_url_is_said(run_check: Any) -> None:
    _, lines = run_check(TEACHER_BACKEND="vllm-remote")
    assert "VLLM_REMOTE_URL is not set and there is no .env" in lines[0]


def test_the_embedded_teacher_is_loaded_and_scores(run_check: Any, random_teacher: Path) -> None:
    code, lines = run_check(EMBEDDED_TEACHER_PATH=str(random_teacher))
    assert code == 0
    assert "embedded teacher tiny-random, revision" in lines[0]
    assert re.search(r"scored \d\d positions at [\d.]+ nats; after", lines[2])


def test_a_teacher_that_is_not_there_is_said(run_check: Any) -> None:
    code, lines = run_check(TEACHER_BACKEND="transformers")
    assert code == 1
    assert "TEACHER_MODEL is not set" in lines[0]
