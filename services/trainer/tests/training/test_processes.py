"""Several processes under torchrun against one: the same losses, one state, and an end for all of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.packed import PackedData
from latentforge.trainer.results import ProgressPoint, StudentResult, read_progress

# Neither 2 nor 3 processes divide it.
BATCH = 7
STEPS = 20
AVERAGES = ("--set", "student.ema=0.6")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(
    environment: dict[str, str], known_teacher: Any, packed: PackedData, autoencoder: Path, tmp_path: Path
) -> Iterator[Start]:
    """Starts ``trainer train student`` on so many processes."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: str, processes: int, *options: str, steps: int = STEPS) -> subprocess.Popen[str]:
        trainer = ["-m", "latentforge.trainer", "train", "student", "--recipe", "tiny", "--run-name", run]
        trainer += ["--gateway", f"127.0.0.1:{known_teacher.port}", "--data", str(packed.folder)]
        trainer += ["--ae-checkpoint", str(autoencoder), "--batch-size", str(BATCH), "--steps", str(steps), *options]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), *trainer]
        log = (tmp_path / f"{run}.log").open("a")
        with log:
            process = subprocess.Popen(
                command, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def finished(process: subprocess.Popen[str], tmp_path: Path, run: str) -> None:
    assert process.wait(timeout=120) == 0, (tmp_path / f"{run}.log").read_text()


def losses(tmp_path: Path, run: str, figure: str = "loss") -> list[float]:
    points: dict[int, ProgressPoint] = {
        p.step: p for p in read_progress(tmp_path / "runs" / run) if p.stage == "student" and p.kind == "train"
    }
    return [points[step].figures[figure] for step in sorted(points)]


def assert_same_losses(tmp_path: Path, run: str, other: str) -> None:
    # Neither optimizer sees how large a gradient is, so losses do not tell a sum over processes from a mean.
    for figure, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
        ours, theirs = losses(tmp_path, run, figure), losses(tmp_path, other, figure)
        assert len(ours) == len(theirs) == STEPS
        assert ours == pytest.approx(theirs, rel=tolerance), figure


@pytest.mark.parametrize(("processes", "kind", "parts", "more"), [(3, "ddp", 2, AVERAGES), (2, "fsdp", 1, ())])
def test_processes_learn_what_one_learns(
    start: Start, tmp_path: Path, processes: int, kind: str, parts: int, more: tuple[str, ...], known_teacher: Any
) -> None:
    options = ("--objective", "chunk-kd-mse", *more)
    finished(start("one", 1, *options), tmp_path, "one")
    known_teacher.requests.clear()
    several = start(
        "several", processes, *options, "--set", f"distributed={kind}", "--gradient-accumulation-steps", str(parts)
    )
    finished(several, tmp_path, "several")
    assert_same_losses(tmp_path, "several", "one")
    # Each asks about its own sequences, the first one about the validation's besides.
    asked = sum(len(sequences) for sequences in known_teacher.requests)
    assert asked == BATCH * STEPS + 2
    results = [StudentResult.read(tmp_path / "runs" / run / "student.json") for run in ("one", "several")]
    for ours, theirs in zip(results[1].curve, results[0].curve, strict=True):
        assert ours.model_dump() == pytest.approx(theirs.model_dump(), rel=1e-4)
    places = [list_checkpoints(tmp_path / "checkpoints" / run) for run in ("one", "several")]
    assert [p.name for p in places[0]] == [p.name for p in places[1]]


def test_the_state_of_two_resumes_on_one_and_on_three(start: Start, tmp_path: Path) -> None:
    finished(start("whole", 1, *AVERAGES), tmp_path, "whole")
    for processes, kind, steps in ((2, "fsdp", 5), (1, "ddp", 10)):
        process = start("moving", processes, *AVERAGES, "--set", f"distributed={kind}")
        _stop_after(process, tmp_path, "moving", steps)
        assert (tmp_path / "moving.log").read_text().count("everything is saved") >= processes
    finished(start("moving", 3, *AVERAGES, "--set", "distributed=fsdp"), tmp_path, "moving")
    assert_same_losses(tmp_path, "moving", "whole")
    weights = [
        load_file(list_checkpoints(tmp_path / "checkpoints" / run)[-1] / "student" / "model.safetensors")
        for run in ("whole", "moving")
    ]
    for name, value in weights[0].items():
        assert weights[1][name].sub(value).abs().max() <= 1e-3 * value.abs().max(), name


def test_one_that_dies_ends_all_and_the_run_resumes(start: Start, tmp_path: Path) -> None:
    finished(start("whole", 1), tmp_path, "whole")
    process = start("cut", 2, "--set", "student.save_every=2")
    _wait_for_step(process, tmp_path, "cut", 5)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    victims = [int(pid) for pid in children.split()]
    os.kill(victims[-1], signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in victims)
    assert len(losses(tmp_path, "cut")) < STEPS
    finished(start("cut", 2), tmp_path, "cut")
    assert_same_losses(tmp_path, "cut", "whole")


def test_more_processes_than_sequences_are_refused(start: Start, tmp_path: Path) -> None:
    process = start("many", 3, "--set", "student.optim.batch_size=2")
    assert process.wait(timeout=60) == 1
    said = " ".join((tmp_path / "many.log").read_text().split())
    assert "a step of 2 sequences cannot be shared by 3 processes; raise batch_size" in said


def _stop_after(process: subprocess.Popen[str], tmp_path: Path, run: str, step: int) -> None:
    """Asks all to stop once a step is made."""
    _wait_for_step(process, tmp_path, run, step)
    # torchrun itself ends with 1 then, whatever its processes do.
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)


def _wait_for_step(process: subprocess.Popen[str], tmp_path: Path, run: str, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if (tmp_path / "runs" / run / "metrics.jsonl").is_file() and len(losses(tmp_path, run)) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not seen: " + (tmp_path / f"{run}.log").read_text())
