import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.lock import LOCK, STALE_AFTER, RunLock

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
        other.send_signal(signal.SIGKILL)
        other.wait()
        # Its file is still there, and says nothing any more.
        assert json.loads((folder / LOCK).read_text())["pid"] == other.pid
        lock = RunLock(folder)
    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    lock.release()
    assert not folder.exists()


def test_a_trainer_on_another_machine_holds_it_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "2026-01-01", "boot": "other"}))
    with pytest.raises(TrainerError, match="process 7 on elsewhere trains it since 2026-01-01"):
        RunLock(tmp_path)
    os.utime(path, (time.time() - STALE_AFTER - 1,) * 2)
    RunLock(tmp_path).release()


def test_it_is_let_go_of_and_held_again_and_the_folder_stays_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    for _ in range(2):
        RunLock(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
