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


@pytest.fixture
def remote(models_server: ModelsServer, random_teacher: Path) -> dict[str, str]:
    """Settings for the server as a vLLM server."""
    return {
        "TEACHER_BACKEND": "vllm-remote",
        "VLLM_REMOTE_URL": models_server.url,
        "VLLM_REMOTE_API_KEY": KEY,
        "TOKENIZER_PATH": str(random_teacher),
    }


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        ("venice", ["VENICE_API_KEY", "TOKENIZER_PATH"]),
        ("vllm-remote", ["VLLM_REMOTE_URL", "TOKENIZER_PATH"]),
        ("vllm-local", ["TOKENIZER_PATH"]),
        ("transformers", ["TEACHER_MODEL"]),
    ],
)
def test_what_is_not_set_is_said_with_how_to_set_it(
    run_check: Any, models_server: ModelsServer, backend: str, names: list[str]
) -> None:
    nowhere = f"{models_server.url}/nowhere"
    code, lines = run_check(TEACHER_BACKEND=backend, VENICE_BASE_URL=nowhere)
    assert code == 1
    if backend == "venice":
        assert lines.pop(0).startswith(f"FAIL  VENICE_BASE_URL={nowhere} answers 404 to GET /models")
    assert lines == [
        f"FAIL  {name} is not set and there is no .env; run: cp .env.example .env, then set {name} in it"
        for name in names
    ]
    code, lines = run_check(f"TEACHER_BACKEND={backend}\n{names[0]}=\n")
    assert code == 1
    assert lines[-len(names)] == f"FAIL  {names[0]} is missing in .env; set it there"


def test_a_wrong_key_is_said(run_check: Any, remote: dict[str, str]) -> None:
    code, lines = run_check(**remote | {"VLLM_REMOTE_API_KEY": "sk-wrong"})
    assert code == 1
    assert lines[0].startswith("FAIL  VLLM_REMOTE_API_KEY is wrong: VLLM_REMOTE_URL=")
    assert "answers 401" in lines[0]
    assert "sk-wrong" not in "".join(lines)
    code, lines = run_check(**remote | {"VLLM_REMOTE_API_KEY": ""})
    assert "VLLM_REMOTE_API_KEY is not set, and the server wants one" in lines[0]
    code, lines = run_check(**remote | {"VLLM_REMOTE_API_KEY": "sk-ключ"})
    assert "VLLM_REMOTE_API_KEY has characters that no key has" in lines[0]


@pytest.mark.parametrize("url", ["x", "ftp://host/v1", "http://", "http://host:port"])
def test_a_malformed_url_is_said_with_what_is_allowed(run_check: Any, remote: dict[str, str], url: str) -> None:
    code, lines = run_check(**remote | {"VLLM_REMOTE_URL": url})
    assert code == 1
    assert len(lines) == 1
    assert f"VLLM_REMOTE_URL malformed {url!r}" in lines[0]
    assert "http(s)://host[:port]" in lines[0]


def test_an_unknown_host_and_a_closed_port_are_told_apart(
    run_check: Any, remote: dict[str, str], free_port: Callable[[], int]
) -> None:
    code, lines = run_check(**remote | {"VLLM_REMOTE_URL": "http://no-such-host.invalid"})
    assert code == 1
    assert "cannot be reached: the host no-such-host.invalid is unknown" in lines[0]
    code, lines = run_check(**remote | {"VLLM_REMOTE_URL": f"http://127.0.0.1:{free_port()}"})
    assert code == 1
    assert "cannot be reached: the connection is refused" in lines[0]
    assert len(lines) == 1


def test_a_server_of_this_machine_is_asked_past_every_proxy_and_one_elsewhere_is_said_to_be_behind_it(
    run_check: Any, remote: dict[str, str], models_server: ModelsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    run_check(**remote, http_proxy="http://127.0.0.1:9")
    assert models_server.paths[0] == "/v1/models"
    _, lines = run_check(**remote | {"VLLM_REMOTE_URL": "http://vllm.example:8000"})
    assert lines[0].endswith("; http_proxy sends this through a proxy, no_proxy=vllm.example would not")


def test_a_server_that_does_not_answer_is_said(
    run_check: Any, models_server: ModelsServer, random_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.gateway.check.listing._SECONDS", 0.2)
    models_server.wait = threading.Event()
    _, lines = run_check(
        TEACHER_BACKEND="vllm-local", VLLM_LOCAL_URL=models_server.url, TOKENIZER_PATH=str(random_teacher)
    )
    assert "did not answer within 0.2 s" in lines[0]


def test_a_vllm_server_is_asked_under_v1_and_then_loaded(
    run_check: Any, remote: dict[str, str], models_server: ModelsServer
) -> None:
    for url in (models_server.url, f"{models_server.url}/v1"):
        code, lines = run_check(**remote | {"VLLM_REMOTE_URL": url})
        assert lines[0] == f"ok    test 1: {url} serves qwen3-5-9b, mute-70b"
        # It is no vLLM: the next test finds out.
        assert code == 1
        assert lines[1].startswith("FAIL  VLLM_REMOTE_URL")
    assert set(models_server.paths) == {"/v1/models"}


def test_an_answer_that_is_no_list_of_models_is_said(
    run_check: Any, remote: dict[str, str], models_server: ModelsServer
) -> None:
    for body in ({"hello": 1}, {"data": ["a"]}, [1]):
        models_server.body = body
        code, lines = run_check(**remote)
        assert code == 1
        assert "something else than a list of models" in lines[0]
    _, lines = run_check(**remote | {"VLLM_REMOTE_URL": f"{models_server.url}/nowhere"})
    assert "answers 404 to GET /v1/models; is it the API's base URL?" in lines[0]


def test_a_folder_without_a_tokenizer_is_said(run_check: Any, remote: dict[str, str]) -> None:
    code, lines = run_check(**remote | {"TOKENIZER_PATH": "nowhere"})
    assert code == 1
    assert "TOKENIZER_PATH=nowhere" in lines[-1]


def test_the_embedded_teacher_is_loaded_and_scores(run_check: Any, random_teacher: Path) -> None:
    code, lines = run_check(EMBEDDED_TEACHER_PATH=str(random_teacher))
    assert code == 0
    assert [line[:14] for line in lines] == ["ok    test 1: ", "ok    test 1: ", "ok    test 2: "]
    assert "embedded teacher tiny-random, revision" in lines[0]
    assert re.search(r"scored \d\d positions at [\d.]+ nats; after", lines[2])


def test_a_hub_model_folder_is_loaded_and_scores(run_check: Any, random_teacher: Path) -> None:
    code, lines = run_check(TEACHER_BACKEND="transformers", TEACHER_MODEL=str(random_teacher))
    assert code == 0
    assert "transformers teacher tiny-random" in lines[0]
    code, lines = run_check(TEACHER_BACKEND="transformers", TEACHER_MODEL="./nowhere")
    assert code == 1
    assert lines[0].startswith("FAIL  TEACHER_MODEL=./nowhere is no folder")
