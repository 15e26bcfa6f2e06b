"""A real server on the loopback, in a thread, around an application that the test writes or the service's own."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.http.connections import ConnectionLimits
from latentforge.core.settings import load_settings
from latentforge.core.sockets import listening_socket
from latentforge.inference.edge.server import DrainingServer
from latentforge.inference.main import Service, build
from latentforge.inference.settings import InferenceSettings


@dataclass
class RunningServer:
    port: int
    service: Service
    server: DrainingServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)


Serve = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs the service as it is, without a checkpoint, with some settings changed."""

    @contextmanager
    def run(*, limits: ConnectionLimits | None = None, **changes: Any) -> Iterator[RunningServer]:
        values = {f"inference_{name}": value for name, value in changes.items()}
        folder = tmp_path / "checkpoints"
        settings = load_settings(InferenceSettings, checkpoints_dir=folder, inference_device="cpu", **values)
        service = build(settings)
        seconds = settings.inference_body_seconds
        limits = limits or ConnectionLimits(
            settings.inference_max_connections, seconds, seconds, "INFERENCE_MAX_CONNECTIONS", seconds
        )
        server = DrainingServer(
            service.app, service.drain, settings.inference_shutdown_seconds, service.engine.close, limits
        )
        with listening_socket("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                while not server.started and thread.is_alive():
                    time.sleep(0.005)
                yield RunningServer(listener.getsockname()[1], service, server)
            finally:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

    return run


def read_all(connection: socket.socket, seconds: float = 20) -> bytes:
    """What comes until the other side closes."""
    connection.settimeout(seconds)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def read_answer(connection: socket.socket, seconds: float = 20) -> bytes:
    """One answer that tells its length, on a connection that stays open; less where it is closed before."""
    connection.settimeout(seconds)
    received = b""
    while piece := connection.recv(65536):
        received += piece
        head, end, body = received.partition(b"\r\n\r\n")
        told = re.search(rb"content-length: (\d+)", head)
        if end and told and len(body) >= int(told[1]):
            break
    return received
