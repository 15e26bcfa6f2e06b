"""Commands that share a gateway, which one of them has started."""

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
from tools.gateway_use import GatewayUse

SECONDS = 120


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def with_gateway(port: int, folder: Path, code: str) -> subprocess.Popen[str]:
    """A command that runs some Python with a gateway."""
    environment = {"GATEWAY_PORT": str(port), "CACHE_URL": f"sqlite:///{folder}/cache.sqlite"}
    command = [sys.executable, "-m", "tools.gateway", "--", sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, stderr=subprocess.PIPE)


def wait_until_there(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def begin_both(port: int, folder: Path) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """One command that starts a gateway and has nothing left to do, and one that found that gateway and works on."""
    begun, found, go = folder / "begun", folder / "found", folder / "go"
    wait = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.1)\n"
    touch = "import pathlib; pathlib.Path({!r}).touch()\n"
    starter = with_gateway(port, folder, touch.format(str(begun)) + wait.format(str(found)))
    wait_until_there(begun)
    other = with_gateway(port, folder, touch.format(str(found)) + wait.format(str(go)))
    wait_until_there(found)
    return starter, other


def test_a_gateway_stays_until_the_last_command_that_found_it_ends(port: int, tmp_path: Path) -> None:
    starter, other = begin_both(port, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        starter.wait(timeout=3)
    assert gateway_answers(f"localhost:{port}")
    (tmp_path / "go").touch()
    told, said = starter.communicate(timeout=SECONDS)[1], other.communicate(timeout=SECONDS)[1]
    assert (starter.returncode, other.returncode) == (0, 0)
    assert told.count("other commands use the gateway that this one started") == 1
    assert said == ""
    assert not gateway_answers(f"localhost:{port}")


def test_who_is_stopped_stops_the_gateway_at_once(port: int, tmp_path: Path) -> None:
    starter, other = begin_both(port, tmp_path)
    starter.send_signal(signal.SIGTERM)
    starter.communicate(timeout=SECONDS)
    assert starter.returncode == 128 + signal.SIGTERM
    assert not gateway_answers(f"localhost:{port}")
    (tmp_path / "go").touch()
    other.communicate(timeout=SECONDS)


def test_use_ends_with_the_process_whatever_ends_it(port: int) -> None:
    begin = f"import time\nfrom tools.gateway_use import GatewayUse\nwith GatewayUse('{port}'):"
    code = f"{begin} print(flush=True); time.sleep(99)"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with GatewayUse(str(port)) as use:
        other.kill()
        use.wait_for_others(lambda: None)
        other.wait()
        # Now nobody begins.
        late = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            late.wait(timeout=2)
        assert late.stdout is not None
        os.set_blocking(late.stdout.fileno(), False)
        assert not late.stdout.read()
    os.set_blocking(late.stdout.fileno(), True)
    late.stdout.readline()
    late.kill()
    late.wait()
    other.stdout.close()
    late.stdout.close()
