"""Training in processes of their own, of this checkout and of an earlier one, that take steps in turns."""

import io
import json
import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.trainer.bench import BenchError

_WORKER = Path(__file__).with_name("step_worker.py")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class StepJob:
    """What a worker trains.

    Attributes:
        stage: which of the recipe's students.
        recipe, recipes_dir, overrides: as load_recipe takes them.
        batches: a safetensors file: tokens, int64 [n, b, L], and a teacher's rows for them, KdTargets [n, b, L].
        vocab_size, pad_id, eos_id: of the tokenizer.
        device, threads: where it computes.
    """

    stage: Literal["student", "token-level"]
    recipe: str
    recipes_dir: str
    batches: str
    vocab_size: int
    pad_id: int
    eos_id: int
    device: str
    threads: int
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class StepFigures:
    """What a worker's steps took, and their losses."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class StepWorker:
    """A process that trains on demand; it starts at once, and ends with the stack.

    Args:
        stack: what it ends with.
        name: of its job's file in ``scratch``.
        job: what it trains.
        scratch: folder for the job.
        checkout: whose code it runs; None for this one's.
    """

    def __init__(self, stack: ExitStack, name: str, job: StepJob, scratch: Path, checkout: Path | None = None) -> None:
        self._name, self.figures = name, StepFigures()
        path = scratch / f"{name}.json"
        path.write_text(json.dumps(asdict(job)), encoding="utf-8")
        self._errors = (scratch / f"{name}.log").open("w+", encoding="utf-8")
        stack.enter_context(self._errors)
        self._root, self._is_ready = checkout or _ROOT, False
        sources = [self._root / "services/trainer/src", self._root / "proto", *sorted(self._root.glob("libs/*/src"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources))}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        stack.callback(self._stop)

    def take(self, steps: int) -> float:
        """Makes steps; gives the seconds of one.

        Raises:
            BenchError: the process ended, or runs other code than it was to.
        """
        assert self._process.stdin is not None
        if not self._is_ready:
            loaded = Path(self._answer()["model"])
            if not loaded.is_relative_to(self._root):
                raise BenchError(f"{self._name} runs {loaded}, which is not of {self._root}")
            self._is_ready = True
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        told = self._answer()
        self.figures.seconds.append(told["seconds"] / steps)
        self.figures.cpu_seconds.append(told["cpu_seconds"] / steps)
        self.figures.losses += told["losses"]
        return float(told["seconds"]) / steps

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        raise BenchError(f"{self._name} ended with exit code {self._process.wait()}: {''.join(last)}")

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def checkout_of(commit: str, folder: Path) -> Path:
    """An earlier commit's packages, in a new folder.

    Raises:
        BenchError: this is not a git checkout that has the commit.
    """
    command = ["git", "-C", str(_ROOT), "archive", commit, "libs", "proto", "services/trainer"]
    archived = subprocess.run(command, capture_output=True, check=False)
    if archived.returncode:
        said = archived.stderr.decode(errors="replace").strip()
        raise BenchError(f"commit {commit} is not in this checkout ({said}): git fetch --unshallow brings it")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder
