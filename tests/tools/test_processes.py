import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.processes import ChildError, Children, StoppedError, stop_on_signals

# Says on stdout that it is there, then sleeps; a grandchild does the same.
_SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(pid)


def _wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path} never said {text!r}"
        time.sleep(0.02)


def test_children_are_stopped_on_the_way_out(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("sleeper", _python(_SLEEPER))
        _wait_for(tmp_path / "sleeper.log", "up")
        assert _alive(child.pid)
    assert not _alive(child.pid)


def test_a_child_that_is_left_alive_still_ends_when_it_is_told_to(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("sleeper", _python(_SLEEPER), leashed=False)
        _wait_for(tmp_path / "sleeper.log", "up")
        children.leave(child)
    assert _alive(child.pid)
    os.kill(child.pid, signal.SIGTERM)
    try:
        assert _gone_within(child.pid, 10)
    finally:
        child.stop(grace=0)


def test_an_exception_stops_the_children_too(tmp_path: Path) -> None:
    pids = []

    def fail() -> None:
        with Children(tmp_path) as children:
            pids.append(children.start("sleeper", _python(_SLEEPER)).pid)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert not _alive(pids[0])


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with Children(tmp_path, grace=0.2) as children:
        child = children.start("stubborn", _python(_STUBBORN))
        _wait_for(tmp_path / "stubborn.log", "up")
    assert child.exit_code() == -signal.SIGKILL


def test_what_a_child_started_is_stopped_with_it(tmp_path: Path) -> None:
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {_STUBBORN!r}]).pid, flush=True)"
    with Children(tmp_path, grace=0.5) as children:
        children.start("parent", _python(f"{code}; {_SLEEPER}"))
        _wait_for(tmp_path / "parent.log", "up")
        grandchild = int((tmp_path / "parent.log").read_text().split()[0])
    assert _gone_within(grandchild, 5)


def test_check_names_the_child_its_signal_and_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("victim", _python(_SLEEPER))
        _wait_for(tmp_path / "victim.log", "up")
        os.kill(child.pid, signal.SIGKILL)
        _gone_within(child.pid, 5)
        with pytest.raises(ChildError, match=rf"(?s)victim \(pid {child.pid}\) was killed by SIGKILL.*victim\.log.*up"):
            children.check()


def test_finish_refuses_a_failure(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        child = children.start("worker", _python("import sys; sys.exit('no luck')"))
        with pytest.raises(ChildError, match=r"(?s)worker .* ended with exit code 1.*no luck"):
            children.finish(child)


def test_finish_does_not_wait_for_a_worker_whose_server_died(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start("server", _python("import sys; sys.exit(3)"))
        worker = children.start("worker", _python(_SLEEPER))
        with pytest.raises(ChildError, match=r"server .* ended with exit code 3"):
            children.finish(worker)


def test_waiting_ends_when_time_is_up(tmp_path: Path) -> None:
    with Children(tmp_path) as children, pytest.raises(TimeoutError, match="the impossible took longer"):
        children.wait_until(lambda: False, "the impossible", seconds=0.3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_children_end_with_their_parent_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
from pathlib import Path
from tools.processes import Children, StoppedError, stop_on_signals
import sys, time
try:
    with stop_on_signals(), Children(Path({str(tmp_path)!r})) as children:
        print(children.start("sleeper", [sys.executable, "-c", {_SLEEPER!r}]).pid, flush=True)
        time.sleep(60)
except StoppedError as stopped:
    sys.exit(stopped.exit_code)
"""
    parent = subprocess.Popen(_python(code), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    _wait_for(tmp_path / "sleeper.log", "up")
    parent.send_signal(number)
    code_of_parent = parent.wait(timeout=20)
    parent.stdout.close()
    assert code_of_parent == (-number if number is signal.SIGKILL else 128 + number)
    assert _gone_within(child, 10)


def test_signals_mean_what_they_meant_once_nobody_listens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
        with pytest.raises(StoppedError, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
