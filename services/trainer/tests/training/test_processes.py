"""Several processes against one: the same losses, one state, and an end for all of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.packed import PackedData
from latentforge.trainer.results import ProgressPoint, StudentResult, read_progress
from tests.trainer_processes import start_trainer

# Neither 2 nor 3 processes divide it.
BATCH = 7
STEPS = 20
AVERAGES = ("--set", "student.ema=0.6")


@dataclass
class Trainers:
    """Starts ``trainer train`` on so many processes, and looks at what they left below one folder."""

    root: Path
    environment: dict[str, str]
    options: list[str]
    autoencoder: Path
    started: list[BaseProcess] = field(default_factory=list)

    def arguments(self, run: str, *options: str, stage: str = "student") -> list[str]:
        more = ["--ae-checkpoint", str(self.autoencoder)] if stage == "student" else []
        return ["train", stage, "--run-name", run, *self.options, *more, *options]

    def start(self, run: str, processes: int, *options: str, stage: str = "student") -> list[BaseProcess]:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        arguments = self.arguments(run, *options, stage=stage)
        started = start_trainer(arguments, self.environment, self.log(run), processes=processes, port=port)
        self.started += started
        return started

    def finish(self, run: str, processes: int, *options: str, stage: str = "student") -> None:
        assert ended(self.start(run, processes, *options, stage=stage)) == [0] * processes, self.log(run).read_text()

    def log(self, run: str) -> Path:
        return self.root / f"{run}.log"

    def result(self, run: str, stage: str = "student") -> StudentResult:
        return StudentResult.read(self.root / "runs" / run / f"{stage}.json")

    def losses(self, run: str, figure: str = "loss") -> list[float]:
        points: dict[int, ProgressPoint] = {
            p.step: p for p in read_progress(self.root / "runs" / run) if p.stage != "generate" and p.kind == "train"
        }
        return [points[step].figures[figure] for step in sorted(points)]

    def wait_for_step(self, run: str, step: int, is_running: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and is_running():
            if (self.root / "runs" / run / "metrics.jsonl").is_file() and len(self.losses(run)) >= step:
                return
            time.sleep(0.02)
        pytest.fail(f"step {step} was not seen: " + self.log(run).read_text())

    def assert_same(self, run: str, other: str, steps: int = STEPS) -> None:
        # Neither optimizer sees how large a gradient is, so losses do not tell a sum over processes from a mean.
        for figure, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
            ours, theirs = self.losses(run, figure), self.losses(other, figure)
            assert len(ours) == len(theirs) == steps
            assert ours == pytest.approx(theirs, rel=tolerance), figure

    def assert_same_curve(self, run: str, other: str, stage: str = "student") -> None:
        ours, theirs = (self.result(name, stage).curve for name in (run, other))
        for point, expected in zip(ours, theirs, strict=True):
            # What a part is worth is a difference of two losses, and here nearly 0.
            assert point.model_dump(exclude_none=True) == pytest.approx(
                expected.model_dump(exclude_none=True), rel=1e-4, abs=1e-6
            )


@pytest.fixture
def trainers(
    environment: dict[str, str], known_teacher: Any, packed: PackedData, autoencoder: Path, tmp_path: Path
) -> Iterator[Trainers]:
    options = ["--recipe", "tiny", "--gateway", f"127.0.0.1:{known_teacher.port}", "--data", str(packed.folder)]
    options += ["--batch-size", str(BATCH), "--steps", str(STEPS)]
    found = Trainers(tmp_path, environment | {"OMP_NUM_THREADS": "1"}, options, autoencoder)
    yield found
    for process in found.started:
        process.kill()
        process.join()


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def test_processes_learn_what_one_learns(trainers: Trainers, known_teacher: Any) -> None:
    options, steps = ("--objective", "chunk-kd-mse", *AVERAGES), 10
    trainers.finish("one", 1, *options, "--steps", str(steps))
    for kind, processes, parts in (("ddp", 3, 2), ("fsdp", 2, 1)):
        known_teacher.forget()
        several = ("--set", f"distributed={kind}", "--gradient-accumulation-steps", str(parts))
        trainers.finish(kind, processes, *options, "--steps", str(steps), *several)
        trainers.assert_same(kind, "one", steps)
        # Each asks about its own sequences, the first one about the validation's besides.
        asked = sum(len(sequences) for sequences in known_teacher.requests)
        assert asked == BATCH * steps + 2
        trainers.assert_same_curve(kind, "one")
        places = [list_checkpoints(trainers.root / "checkpoints" / run) for run in ("one", kind)]
        assert [p.name for p in places[0]] == [p.name for p in places[1]]


# Room for a byte-level chat.
GENERATE = ("--targets", "generate", "--set", "data.sequence_length=64")
# So few sequences have rows that in some steps a process has none.
SHARE = ("--set", "teacher.share=0.3")
RECURRENT = ("--set", "student.model.chunk_decoder.kind=recurrent")


@pytest.mark.parametrize(
    ("stage", "kind", "options"),
    [
        ("student", "ddp", GENERATE),
        ("student", "fsdp", (*SHARE, *RECURRENT, "--gateway", "127.0.0.1:9", "--targets-from")),
        ("token-level", "ddp", SHARE),
    ],
)
def test_two_learn_from_every_kind_of_targets_what_one_learns(
    trainers: Trainers, known_teacher: Any, score: Any, packed: PackedData, stage: str, kind: str, options: tuple[str]
) -> None:
    data, steps = packed.folder, 4
    if options[-1] == "--targets-from":
        kept = trainers.root / "kept"
        assert score(data, kept)[0] == 0
        options += (str(kept),)  # type: ignore[assignment]
    asked = []
    for run, processes in (("one", 1), ("two", 2)):
        known_teacher.forget()
        more = ("--held-out", str(data), "--steps", str(steps), "--set", f"distributed={kind}")
        trainers.finish(run, processes, *options, *more, stage=stage)
        asked.append((sum(map(len, known_teacher.requests)), len(known_teacher.generated)))
    trainers.assert_same("two", "one", steps)
    assert asked[0] == asked[1]
    ours, theirs = (trainers.result(run, stage) for run in ("two", "one"))
    assert (ours.generated, ours.kept, ours.cache) == (theirs.generated, theirs.kept, theirs.cache)
    trainers.assert_same_curve("two", "one", stage)


def test_one_that_dies_ends_all_and_the_state_of_two_resumes_on_three_and_on_one(
    trainers: Trainers, score: Any, packed: PackedData
) -> None:
    assert score(packed.folder, trainers.root / "kept")[0] == 0
    trainers.options += ["--targets-from", str(trainers.root / "kept"), *AVERAGES]
    trainers.finish("whole", 1)
    sharded = ("--set", "distributed=fsdp")
    with trainers.log("cut").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
                *("-m", "latentforge.trainer", *trainers.arguments("cut", *sharded, "--set", "student.save_every=2")),
            ],
            env=os.environ | trainers.environment,
            stdout=log,
            stderr=log,
        )
    try:
        trainers.wait_for_step("cut", 5, lambda: process.poll() is None)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        victims = [int(pid) for pid in children.split()]
        os.kill(victims[-1], signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()
    assert not any(Path(f"/proc/{pid}").exists() for pid in victims)
    died_at = len(trainers.losses("cut"))
    assert died_at < STEPS
    started = trainers.start("cut", 3, *sharded)
    trainers.wait_for_step("cut", died_at + 3, started[0].is_alive)
    for stopped in started:
        stopped.terminate()
    assert ended(started) == [0] * 3
    assert trainers.log("cut").read_text().count("everything is saved") == 3
    assert len(trainers.losses("cut")) < STEPS
    trainers.finish("cut", 1)
    trainers.assert_same("cut", "whole")
    # All processes' together: each start looks at two held-out sequences, and some of those that are stopped may have
    # a step's rows that was not made.
    ours, theirs = (trainers.result(run).kept for run in ("cut", "whole"))
    assert ours is not None
    assert theirs is not None
    assert 0 <= ours.sequences - (theirs.sequences + 2 * 2) < BATCH
    weights = [
        load_file(list_checkpoints(trainers.root / "checkpoints" / run)[-1] / "student" / "model.safetensors")
        for run in ("whole", "cut")
    ]
    for name, value in weights[0].items():
        assert weights[1][name].sub(value).abs().max() <= 1e-3 * value.abs().max(), name


def test_more_processes_than_sequences_are_refused(trainers: Trainers) -> None:
    assert ended(trainers.start("many", 3, "--set", "student.optim.batch_size=2")) == [1] * 3
    said = " ".join(trainers.log("many").read_text().split())
    assert "a step of 2 sequences cannot be shared by 3 processes; raise batch_size" in said
