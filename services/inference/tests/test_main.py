import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.settings import SettingsError
from latentforge.inference.main import build_registry, listen
from latentforge.inference.settings import InferenceSettings

Publish = Callable[..., Path]


@pytest.fixture
def server(checkpoints: Path, tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "inference"), "serve", "--port", str(port)]
    environment = os.environ | {
        "CHECKPOINTS_DIR": str(checkpoints),
        "INFERENCE_POLL_SECONDS": "0.05",
        "TORCH_THREADS": "1",
        "INFERENCE_DEVICE": "cpu",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, cwd=tmp_path)
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait()


def wait_for(url: str, path: str, condition: Callable[[Any], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if condition(httpx.get(url + path).json()):
                return
        time.sleep(0.02)
    raise TimeoutError(f"{url}{path} did not come to it in {seconds} s")


@pytest.mark.e2e
def test_a_real_server_swaps_without_a_restart_and_sigterm_lets_a_request_end(
    server: tuple[str, "subprocess.Popen[bytes]"], publish: Publish
) -> None:
    url, process = server
    publish(1)
    wait_for(url, "/health", lambda health: health["checkpoint"] == "demo/step-00000001")
    probe = httpx.head(f"{url}/health")
    assert (probe.status_code, probe.content) == (200, b"")
    publish(2, max_chunks=1024)
    wait_for(url, "/health", lambda health: health["checkpoint"] == "demo/step-00000002")
    body = {"prompt": "x", "max_tokens": 400, "temperature": 0}
    answers: list[httpx.Response] = []
    request = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/generate", json=body, timeout=60)))
    request.start()
    wait_for(url, "/ready", lambda ready: ready["running"] == 1)
    process.send_signal(signal.SIGTERM)
    request.join()
    [answer] = answers
    assert answer.status_code == 200
    assert answer.json()["checkpoint"] == "demo/step-00000002"
    assert answer.json()["usage"]["completion_tokens"] == 400
    assert process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_taken_port_is_named() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SettingsError, match=f"port {taken.getsockname()[1]} on 127.0.0.1 is taken"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_host_that_is_not_this_machine_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        listen("192.0.2.1", 0)


def test_a_host_that_is_no_name_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on my\.\.host port 0: malformed name: .*INFERENCE_HOST"):
        listen("my..host", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_listening_socket_makes_connections_without_delay(host: str) -> None:
    with listen(host, 0) as server:
        assert server.proto == socket.IPPROTO_TCP


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SettingsError, match="INFERENCE_DEVICE is 'cuda', but of CUDA devices torch finds none"):
        build_registry(InferenceSettings(inference_device="cuda"))
    assert build_registry(InferenceSettings(inference_device="auto")).device.type == "cpu"
