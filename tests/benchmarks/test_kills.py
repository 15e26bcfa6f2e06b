import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.trainer.__main__ import TrainerBenchResults
from benchmarks.trainer.killed_run import KilledRun


def run_of(folder: Path, files: dict[str, bytes]) -> KilledRun:
    run = KilledRun(folder, [])
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return run


def line(step: int, ce: float, time: float) -> str:
    return json.dumps({"stage": "student", "kind": "train", "step": step, "time": time, "ce": ce, "tok_per_s": time})


def test_runs_are_compared_to_the_bit_but_for_times_and_what_each_process_writes(tmp_path: Path) -> None:
    files = {
        "checkpoints/killed/step-00000002/model.safetensors": b"\x00\x0f\x00",
        "runs/killed/student.json": b'{"seconds": 1.5, "curve": [{"step": 0, "ce": 2.0}]}',
        "runs/killed/metrics.jsonl": f"{line(1, 2.0, 1.0)}\n{line(2, 1.5, 2.0)}\n".encode(),
        "runs/killed/status.json": b"{}",
        "log": b"",
    }
    whole = run_of(tmp_path / "whole", files)
    # A step that was made again after a kill, which had cut a line.
    again = f"{line(1, 2.0, 1.0)}\n{line(2, 1.0, 2.0)[:20]}\n{line(1, 2.0, 3.0)}\n{line(2, 1.5, 4.0)}\n"
    same = files | {
        "runs/killed/student.json": b'{"seconds": 9.5, "curve": [{"step": 0, "ce": 2.0}]}',
        "runs/killed/metrics.jsonl": again.encode(),
        "runs/killed/status.json": b'{"pid": 2}',
        "runs/killed/tensorboard/student/events.2": b"2",
        "log": b"warning",
    }
    assert whole.compared(run_of(tmp_path / "same", same)) == ({}, [])
    weights, left = "checkpoints/killed/step-00000002/model.safetensors", "runs/killed/state/.step-00000003~7@host/a"
    other = same | {
        # Two bits are others, and a byte is more.
        weights: b"\x00\x0c\x00\x00",
        "runs/killed/student.json": b'{"seconds": 1.5, "curve": [{"step": 0, "ce": 3.0}]}',
        left: b"",
    }
    del other["runs/killed/metrics.jsonl"]
    bits, strange = whole.compared(run_of(tmp_path / "other", other))
    # "2" and "3" are a bit apart.
    assert bits == {weights: 10, "runs/killed/student.json": 1}
    assert strange == ["runs/killed/metrics.jsonl", left]


@pytest.mark.slow
@pytest.mark.e2e
def test_two_runs_that_are_killed_leave_what_one_leaves_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.trainer", "--quick", "--only", "kills", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_trainer_*.json")
    found = TrainerBenchResults.read(path)
    assert {name: result.value for name, result in found.by_id.items()} == {"kills": 0, "kills_leftovers": 0}, found
    assert len(found.measured["kills"]["moments"]) == 2
    assert found.measured["kills"]["runs"] == 2
