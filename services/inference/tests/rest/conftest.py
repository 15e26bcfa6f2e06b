"""A real server on the loopback with a tiny checkpoint, which clients ask as they would ask any."""

import faulthandler
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.http.connections import ConnectionLimits
from latentforge.core.settings import load_settings
from latentforge.core.sockets import listening_socket
from latentforge.inference.edge.server import DrainingServer
from latentforge.inference.main import Service, build
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.snapshot import Snapshot

Publish = Callable[..., Path]
SHIPPED = Path(__file__).resolve().parents[4] / "models" / "stdlib-student"
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass
class ServedApi:
    """A server and a client of it."""

    url: str
    service: Service
    client: httpx.Client

    @property
    def snapshot(self) -> Snapshot:
        assert self.service.registry.current is not None
        return self.service.registry.current

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a request that is to be answered."""
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error that a request is answered."""
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        assert response.headers["x-request-id"]
        error: dict[str, Any] = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    def events(self, path: str, **body: Any) -> list[Any]:
        """A stream's events, read as strictly as the standard has it."""
        with self.client.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            told = response.read().decode()
        return events_of(told)


def events_of(told: str) -> list[Any]:
    """What a whole stream said, its comments and its end taken off."""
    assert told.endswith("\n\n")
    blocks = told.removesuffix("\n\n").split("\n\n")
    assert all("\n" not in block for block in blocks)
    data = [block for block in blocks if not block.startswith(":")]
    assert all(block.startswith("data: ") for block in data)
    assert data[-1] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in data[:-1]]


ServeApi = Callable[..., AbstractContextManager[ServedApi]]


@contextmanager
def serving(**settings: Any) -> Iterator[ServedApi]:
    """Runs the service as it is until the block ends, once it has a checkpoint."""
    fixed = {"inference_poll_seconds": 0.02, "inference_device": "cpu", "torch_threads": 1}
    loaded = load_settings(InferenceSettings, **fixed | settings)
    service = build(loaded)
    seconds = loaded.inference_body_seconds
    limits = ConnectionLimits(loaded.inference_max_connections, seconds, seconds, "INFERENCE_MAX_CONNECTIONS", seconds)
    server = DrainingServer(service.app, service.drain, 10, service.engine.close, limits)
    with listening_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            end = time.monotonic() + 60
            while service.registry.current is None and time.monotonic() < end:
                time.sleep(0.005)
            assert service.registry.current is not None, service.registry.waiting_for
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                yield ServedApi(url, service, client)
        finally:
            server.should_exit = True
            thread.join(30)
            if thread.is_alive():
                faulthandler.dump_traceback()
            assert not thread.is_alive()


@pytest.fixture
def serve_api(checkpoints: Path) -> ServeApi:
    """Serves what was published, with some settings changed."""

    def run(**changes: Any) -> AbstractContextManager[ServedApi]:
        return serving(checkpoints_dir=checkpoints, **{f"inference_{name}": value for name, value in changes.items()})

    return run


@pytest.fixture
def api(serve_api: ServeApi, publish: Publish) -> Iterator[ServedApi]:
    """A server with a checkpoint that has a chat template; what it draws hardly depends on what was before."""
    publish(1, chat_template=TEMPLATE)
    with serve_api() as served:
        yield served


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    """A server with the shipped student, which has learnt something."""
    with serving(checkpoints_dir=tmp_path_factory.mktemp("checkpoints"), fallback_run=SHIPPED) as served:
        yield served
