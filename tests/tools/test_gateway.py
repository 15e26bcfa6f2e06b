"""Commands that need a gateway: one that answers already, or one of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.demo.settings import ROOT
from tools.gateway import gateway_answers

SECONDS = 120


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def with_gateway(port: int, folder: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    """A command that runs some Python with a gateway."""
    environment = {"GATEWAY_PORT": str(port), "CACHE_URL": f"sqlite:///{folder}/cache.sqlite", **variables}
    command = [sys.executable, "-m", "tools.gateway", "--", sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, stderr=subprocess.PIPE)


def wait_until_there(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def touch_and_wait(begun: Path, go: Path) -> str:
    """Python that says it has begun, and ends when ``go`` is there."""
    return (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.1)\n"
    )


def test_a_gateway_is_started_for_a_command_and_ends_with_it(port: int, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    command = with_gateway(port, tmp_path, touch_and_wait(begun, go))
    wait_until_there(begun)
    assert gateway_answers(f"localhost:{port}")
    go.touch()
    said = command.communicate(timeout=SECONDS)[1]
    assert command.returncode == 0
    assert "`make gateway` starts one that stays" in said
    assert not gateway_answers(f"localhost:{port}")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_gateway_of_an_ipv6_target_listens_there(port: int, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    command = with_gateway(port, tmp_path, touch_and_wait(begun, go), GATEWAY_TARGET=f"::1:{port}")
    wait_until_there(begun)
    assert gateway_answers(f"[::1]:{port}")
    go.touch()
    command.communicate(timeout=SECONDS)
    assert command.returncode == 0


def test_a_gateway_that_answers_is_used_and_stays(port: int, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    starter = with_gateway(port, tmp_path, touch_and_wait(begun, go))
    wait_until_there(begun)
    other = with_gateway(port, tmp_path, "pass")
    assert other.communicate(timeout=SECONDS)[1] == ""
    assert other.returncode == 0
    assert gateway_answers(f"localhost:{port}")
    go.touch()
    starter.communicate(timeout=SECONDS)
    assert starter.returncode == 0


def test_a_command_that_is_stopped_stops_its_gateway_at_once(port: int, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = with_gateway(port, tmp_path, touch_and_wait(begun, tmp_path / "never"))
    wait_until_there(begun)
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=SECONDS)
    assert command.returncode == 128 + signal.SIGTERM
    assert not gateway_answers(f"localhost:{port}")
