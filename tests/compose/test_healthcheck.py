"""The containers' health check, against servers of this process."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tools.demo.settings import ROOT

# Nothing listens there: whatever goes through the proxy fails.
_PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"), "http://127.0.0.1:9")
# With these of the machine's own, nothing would go through it.
_EXEMPTIONS = {"no_proxy", "no_grpc_proxy"}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def grpc_port() -> Iterator[int]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


def check(*arguments: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in _EXEMPTIONS}
    return subprocess.run(
        [sys.executable, str(ROOT / "compose" / "healthcheck.py"), *arguments],
        env={**inherited, **_PROXIES, **{name.upper(): url for name, url in _PROXIES.items()}},
        capture_output=True,
        text=True,
        check=False,
    )


def test_http_is_asked_past_every_proxy(http_port: int) -> None:
    healthy = check("http", str(http_port), "/ready")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    ill = check("http", str(http_port), "/health")
    assert ill.returncode == 1
    assert "503" in ill.stderr


def test_grpc_is_asked_past_every_proxy(grpc_port: int) -> None:
    healthy = check("grpc", str(grpc_port))
    assert (healthy.returncode, healthy.stderr) == (0, "")
