"""A run of the trainer in folders of its own that is killed, started again, and compared with another."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trainer.bench import BenchError
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import EVALUATION, METRICS, STATUS, LiveStatus, read_progress
from latentforge.trainer.run.lock import LOCK

_NAME = "killed"
_LOOK_SECONDS = 0.005
_START_SECONDS = 300.0
# What tells when and how fast, and so is another each time.
_TIMES = {"seconds", "time", "created", "tok_per_s", "tokens_per_s", "teacher_wait_seconds"}
# Each process writes its own: its name, or what it says of itself.
_OF_A_PROCESS = {STATUS, "log", "tensorboard"}


class KilledRun:
    """``trainer run`` again and again, until it is done.

    Args:
        folder: for all that it writes.
        options: of the command, besides the run's name.
        stopped: says whether to give up, which ends the process.
    """

    def __init__(self, folder: Path, options: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> None:
        self.folder, self._stopped = folder, stopped
        self._run, self._checkpoints = folder / "runs" / _NAME, folder / "checkpoints"
        self._command = [sys.executable, "-m", "latentforge.trainer", "run", "--run", _NAME, *options]
        folders = {"RUNS_DIR": str(folder / "runs"), "CHECKPOINTS_DIR": str(self._checkpoints)}
        self._environment = os.environ | folders | {"TRAINER_THREADS": "1", "OMP_NUM_THREADS": "1"}
        folder.mkdir()

    def work(self, kill_after: float | None) -> tuple[float, str | None]:
        """Runs a process until it has ended, or is killed with all that it has started.

        Args:
            kill_after: seconds after it has taken the run's lock; None lets it be.

        Returns:
            The seconds since then, and what it was doing when it was killed; None where it was done before.

        Raises:
            BenchError: it failed.
        """
        lock = self._run / LOCK
        # Of the process that was killed before; the kernel has let go of it.
        lock.unlink(missing_ok=True)
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait(process, lock.exists, _START_SECONDS)
            started = time.monotonic()
            self._wait(process, lambda: False, float("inf") if kill_after is None else kill_after)
            seconds = time.monotonic() - started
        finally:
            is_done = process.poll() is not None
            if not is_done:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not is_done:
            return seconds, self._moment(process.pid)
        if process.returncode:
            raise BenchError(f"a run ended with {process.returncode}: {(self.folder / 'log').read_text()[-1000:]}")
        return seconds, None

    def _wait(self, process: "subprocess.Popen[bytes]", until: Callable[[], bool], seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while process.poll() is None and not until() and time.monotonic() < give_up and not self._stopped():
            time.sleep(_LOOK_SECONDS)

    def _moment(self, pid: int) -> str:
        """What a process was doing that was killed, by what it has left: names that it wrote under, and its status."""
        for what, folder in (("save", self._run / "state"), ("publish", self._checkpoints), ("other files", self._run)):
            if any(folder.rglob(f".*~{pid}@*")):
                return what
        if any((self._run / "data").glob(".*.packing")):
            return "packing"
        try:
            status = LiveStatus.read(self._run / STATUS)
        except TrainerError:
            return "opening"
        is_opening = status.pid != pid or status.stage == "data"
        # The status names a stage until the next one has built its model.
        is_between = status.stage == "autoencoder" and (self._run / "autoencoder" / EVALUATION).is_file()
        is_ending = status.stage == "finished" or (self._run / "student.json").is_file()
        return "opening" if is_opening or is_between else "end" if is_ending else status.stage

    def compared(self, other: "KilledRun") -> tuple[dict[str, int], list[str]]:
        """Bits in which files of both differ, times and speeds left out, by name; and the names that only one has."""
        ours, theirs = self._files(), other._files()
        bits = {name: _differing_bits(_content(ours[name]), _content(theirs[name])) for name in ours.keys() & theirs}
        return {name: count for name, count in bits.items() if count}, sorted(ours.keys() ^ theirs.keys())

    def _files(self) -> dict[str, Path]:
        found = ((path.relative_to(self.folder), path) for path in self.folder.rglob("*") if path.is_file())
        return {name.as_posix(): path for name, path in found if not _OF_A_PROCESS & set(name.parts)}


def _content(path: Path) -> bytes:
    """A file's bytes; of JSON all but times, of metrics the last line of each step."""
    if path.name == METRICS:
        # Steps that were made again after a kill are there twice.
        last = {(point.stage, point.kind, point.step): point.model_dump() for point in read_progress(path.parent)}
        return json.dumps([_timeless(last[key]) for key in sorted(last)]).encode()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_bytes()))).encode()
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in _TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _differing_bits(one: bytes, other: bytes) -> int:
    """Bits that are others, and those that only one has."""
    a, b = (np.frombuffer(each, dtype=np.uint8) for each in (one, other))
    both = min(len(a), len(b))
    return 8 * abs(len(a) - len(b)) + int(np.bitwise_count(a[:both] ^ b[:both]).sum())
