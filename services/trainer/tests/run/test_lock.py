import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.lock import LOCK, STALE_AFTER, RunLock, holder_of

HOLD = """
import sys, time, pathlib
from latentforge.trainer.run.lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_trainer_is_refused_and_told_who_has_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TrainerError, match=rf"{folder} is in use: process {other.pid} on .* since 20.*last seen"):
            RunLock(folder)
        holder = holder_of(folder)
        assert holder is not None
        assert holder.pid == other.pid
        assert 0 <= holder.age < time.time() - holder.since + 1 < 60
        other.send_signal(signal.SIGKILL)
        other.wait()
        # Its file is still there, and says nothing any more.
        assert json.loads((folder / LOCK).read_text())["pid"] == other.pid
        assert holder_of(folder) is None
        lock = RunLock(folder)
    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert not folder.exists()


def test_a_trainer_on_another_machine_holds_it_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2026-01-01", "boot": "other"}))
    with pytest.raises(TrainerError, match="process 7 on elsewhere trains it since 2026-01-01"):
        RunLock(tmp_path)
    assert holder_of(tmp_path) is not None
    os.utime(path, (time.time() - STALE_AFTER - 1,) * 2)
    assert holder_of(tmp_path) is None
    RunLock(tmp_path).release()


def test_a_file_system_without_locks_has_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(tmp_path)
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    assert holder_of(tmp_path) is not None
    os.utime(tmp_path / LOCK, (time.time() - STALE_AFTER - 1,) * 2)
    assert holder_of(tmp_path) is None
    lock.release()


def test_whoever_asks_for_the_holder_keeps_no_trainer_out(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as asking, ThreadPoolExecutor(1) as pool:
        fcntl.flock(asking, fcntl.LOCK_SH)
        starting = pool.submit(RunLock, tmp_path)
        with pytest.raises(TimeoutError):
            starting.result(timeout=0.05)
        fcntl.flock(asking, fcntl.LOCK_UN)
        starting.result().release()


def test_it_is_let_go_of_and_held_again_and_the_folder_stays_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    for _ in range(2):
        RunLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
