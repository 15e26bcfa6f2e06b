"""A local HTTP server that repeats recorded answers of vLLM, or worse ones. A real vLLM is tested in tests/vllm."""

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend
from latentforge.gateway.main import Gateway
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.client import TeacherClient

_RECORDED = Path(__file__).with_name("recorded")
VOCAB = 300
VllmAnswer = tuple[int, bytes]


def recorded(name: str) -> VllmAnswer:
    content = json.loads((_RECORDED / f"{name}.json").read_text())
    return content["status"], content["body"].encode()


@dataclass
class FakeVllm:
    """Answers as vLLM does; every position has the same distribution, so that any request can be answered.

    ``change`` gets the path, what was asked and what would be answered, and answers.
    """

    url: str = ""
    change: Callable[[str, dict[str, Any], VllmAnswer], VllmAnswer] = lambda path, asked, answer: answer
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    tokenize: Callable[[str], list[int]] = lambda text: []
    #: its weights: by how much each id is less probable than the one before
    slope: float = 0.05
    fingerprint: str | None = "f"
    root: str = "models/tiny"
    _http: "_Server | None" = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """At the address that it has, if it had one before."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        self._http = _Server(("127.0.0.1", port), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """As a process that ends: with its connections."""
        if self._http is None or self._thread is None:
            return
        self._http.shutdown()
        self._thread.join()
        self._http.cut_off()
        self._http.server_close()
        self._http = None

    def answer(self, path: str, asked: dict[str, Any], headers: dict[str, str]) -> VllmAnswer:
        self.asked.append((path, asked, headers))
        if path in ("/v1/models", "/version"):
            status, body = recorded(path.rsplit("/", 1)[1])
            return self.change(path, asked, (status, body.replace(b"models/tiny", self.root.encode())))
        if path == "/health":
            return self.change(path, asked, (200, b""))
        prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [self.tokenize(asked["prompt"])]
        choices = [self._choice(index, ids, asked) for index, ids in enumerate(prompts)]
        content = {"choices": choices, "system_fingerprint": self.fingerprint}
        return self.change(path, asked, (200, json.dumps(content).encode()))

    def _choice(self, index: int, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        steps = 1 if asked.get("prompt_logprobs") is not None else asked["max_tokens"]
        generated = [5] * steps
        top = asked.get("logprobs")
        return {
            "index": index,
            "finish_reason": "length",
            "token_ids": generated,
            "prompt_token_ids": ids,
            "logprobs": None
            if top is None
            else {
                "tokens": ["token_id:5"] * steps,
                "top_logprobs": [{f"token_id:{i}": self._logprob(i) for i in _top(5, top)}] * steps,
            },
            "prompt_logprobs": None
            if asked.get("prompt_logprobs") is None
            else [
                None,
                *(
                    {str(i): {"logprob": self._logprob(i), "rank": i + 1} for i in _top(own, asked["prompt_logprobs"])}
                    for own in ids[1:]
                ),
            ],
        }

    def _logprob(self, token_id: int) -> float:
        """Of a geometric distribution, of which a hundredth is left for nothing: no sum exceeds 1."""
        return -self.slope * token_id + math.log(1 - math.exp(-self.slope)) - 0.01


def _top(own: int, top_k: int) -> list[int]:
    return [own, *(i for i in range(top_k) if i != own)]


class _Server(ThreadingHTTPServer):
    def __init__(self, *arguments: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted = super().get_request()
        self.connections.append(accepted[0])
        return accepted

    def cut_off(self) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _handler_of(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, asked: dict[str, Any]) -> None:
            status, body = fake.answer(self.path, asked, dict(self.headers))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[FakeVllm]:
    fake = FakeVllm()
    fake.start()
    yield fake
    fake.stop()


MakeBackend = Callable[..., Backend]


@pytest.fixture
def make_backend(server: FakeVllm, random_teacher: Path) -> MakeBackend:
    def make(**changes: Any) -> Backend:
        defaults: dict[str, Any] = {
            "teacher_backend": "vllm-remote",
            "vllm_remote_url": server.url,
            "tokenizer_path": random_teacher,
            "vllm_start_seconds": 0,
        }
        backend = build_backend(GatewaySettings(**(defaults | changes)), Metrics())
        server.tokenize = lambda text: backend.tokenizer.encode(text, parse_special_tokens=True)
        return backend

    return make


@pytest.fixture
def gateway_of(make_settings: Callable[..., Any], random_teacher: Path) -> Any:
    """A gateway whose teacher is the server, and a client."""

    @asynccontextmanager
    async def run(server: FakeVllm, **changes: Any) -> Any:
        settings = make_settings(
            teacher_backend="vllm-remote",
            vllm_remote_url=server.url,
            tokenizer_path=random_teacher,
            gateway_health_seconds=0.05,
            **changes,
        )
        gateway = Gateway(settings)
        server.tokenize = lambda text: gateway._backend.tokenizer.encode(text, parse_special_tokens=True)
        await gateway.start()
        try:
            await gateway.load()
            async with TeacherClient(f"127.0.0.1:{gateway.port}", timeout=30, attempts=1) as client:
                yield gateway, client
        finally:
            await gateway.stop()

    return run
