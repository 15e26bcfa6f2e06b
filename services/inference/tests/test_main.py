import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentforge.core.checkpoints import UnknownCheckpointError
from latentforge.core.settings import SettingsError
from latentforge.inference.main import build_registry, listen
from latentforge.inference.settings import InferenceSettings

Publish = Callable[..., Path]


@pytest.fixture
def server(
    request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "inference"), "serve", "--port", str(port)]
    environment = os.environ | {
        "CHECKPOINTS_DIR": str(checkpoints),
        "INFERENCE_POLL_SECONDS": "0.05",
        "TORCH_THREADS": "1",
        "INFERENCE_DEVICE": "cpu",
        **getattr(request, "param", {}),
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


LONG = {"prompt": "x", "max_tokens": 4000, "temperature": 0}


@pytest.mark.e2e
def test_a_real_server_swaps_without_a_restart_and_drains_at_sigterm(
    server: tuple[str, "subprocess.Popen[bytes]"], publish: Publish
) -> None:
    url, process = server
    publish(1)
    wait_for(url, "/health", lambda health: health["checkpoint"] == "demo/step-00000001")
    probe = httpx.head(f"{url}/health")
    assert (probe.status_code, probe.content) == (200, b"")
    publish(2, max_chunks=1024)
    wait_for(url, "/health", lambda health: health["checkpoint"] == "demo/step-00000002")
    with ThreadPoolExecutor(6) as pool:
        # More than run at a time: those that are queued count, too.
        pending = [pool.submit(httpx.post, f"{url}/generate", json=LONG, timeout=120) for _ in range(6)]
        wait_for(url, "/ready", lambda ready: ready["running"] + ready["queued"] == 6)
        half_sent = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        half_sent.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        process.send_signal(signal.SIGTERM)
        wait_for(url, "/ready", lambda ready: not ready["ready"])
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
        for _ in range(3):
            refused = httpx.post(f"{url}/generate", json={"prompt": "x"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
        # What has not come whole is no request yet, and is not waited for.
        assert half_sent.recv(4096).startswith(b"HTTP/1.1 503 ")
        half_sent.close()
        answers = [answer.result() for answer in pending]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert {answer.json()["checkpoint"] for answer in answers} == {"demo/step-00000002"}
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {4000}
    assert process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.e2e
@pytest.mark.parametrize("server", [{"INFERENCE_SHUTDOWN_SECONDS": "1"}], indirect=True)
def test_what_has_not_ended_in_its_time_is_told_so(
    server: tuple[str, "subprocess.Popen[bytes]"], publish: Publish, tmp_path: Path
) -> None:
    url, process = server
    publish(1, max_chunks=16384)
    wait_for(url, "/health", lambda health: health["checkpoint"] is not None)
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "x", "max_tokens": 65000, "temperature": 0}
        pending = pool.submit(httpx.post, f"{url}/generate", json=body, timeout=120)
        wait_for(url, "/ready", lambda ready: ready["running"] == 1)
        process.send_signal(signal.SIGTERM)
        answer = pending.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert process.wait(20) == 0
    assert "1 requests are cut off after 1 s" in (tmp_path / "log").read_text()


@pytest.mark.e2e
def test_a_second_signal_ends_at_once(server: tuple[str, "subprocess.Popen[bytes]"], publish: Publish) -> None:
    url, process = server
    publish(1, max_chunks=16384)
    wait_for(url, "/health", lambda health: health["checkpoint"] is not None)
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": "x", "max_tokens": 65000, "temperature": 0}
        pending = pool.submit(httpx.post, f"{url}/generate", json=body, timeout=120)
        wait_for(url, "/ready", lambda ready: ready["running"] == 1)
        process.send_signal(signal.SIGTERM)
        wait_for(url, "/ready", lambda ready: not ready["ready"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert isinstance(pending.exception(), httpx.TransportError)


@pytest.mark.e2e
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    "server", [{"INFERENCE_HOST": "::1"}, {"INFERENCE_HOST": "[::1]"}], indirect=True, ids=["bare", "brackets"]
)
def test_an_ipv6_address_is_served_with_brackets_or_without(
    server: tuple[str, "subprocess.Popen[bytes]"], publish: Publish, tmp_path: Path
) -> None:
    port = server[0].rpartition(":")[2]
    url = f"http://[::1]:{port}"
    publish(1)
    wait_for(url, "/health", lambda health: health["checkpoint"] is not None)
    assert httpx.post(f"{url}/generate", json={"prompt": "x", "max_tokens": 4}).status_code == 200
    assert f"listening on {url}, " in (tmp_path / "log").read_text()
    assert f"page at {url}/" in (tmp_path / "log").read_text()


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


def test_the_registry_names_the_setting_that_keeps_a_checkpoint_from_being_asked_for(
    publish: Publish, checkpoints: Path
) -> None:
    publish(1)
    publish(2)
    registry = build_registry(InferenceSettings(checkpoints_dir=checkpoints, inference_extra_checkpoints=0))
    registry.refresh()
    with pytest.raises(UnknownCheckpointError, match="INFERENCE_EXTRA_CHECKPOINTS=0 keeps nothing"):
        registry.snapshot_for("demo/1")


def test_the_registry_names_the_setting_for_which_there_is_no_memory(publish: Publish, checkpoints: Path) -> None:
    publish(1)
    settings = InferenceSettings(checkpoints_dir=checkpoints).model_copy(update={"inference_slots": 10**12})
    registry = build_registry(settings)
    registry.refresh()
    assert "lower INFERENCE_SLOTS" in registry.waiting_for
