"""python -m benchmarks.gpu: what only a GPU tells, within minutes; exit code 0 whatever the figures.

First the CUDA tests, then a student step of each gb10 recipe: tokens per second, peak memory, the optimizer's share of
the time. With what time is left a larger student. Every figure is written down as soon as it is there, so that whatever
ends the run early costs nothing that was measured. ``--device cpu --quick`` tries the script itself.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.benchmark_results import Bars, BenchmarkResults, command_line, machine, results_table
from benchmarks.trainer.student_step import StepParts, StudentStep
from latentforge.core.command_line import errors_reported
from latentforge.core.devices import choose_device
from latentforge.core.results import Result
from latentforge.model.devices import device_description
from latentforge.trainer.config.recipe import Recipe, load_recipe
from latentforge.trainer.config.settings import TrainerSettings

_WARM, _REPEATS = 3, 12
_GIB = 2**30
# To look for them everywhere takes 20 seconds of the GPU's.
CUDA_TESTS = (Path("tests/cuda"), Path("libs/model/tests/test_output_loss.py"))
# Of the time, at most: a suite that hangs must leave some to the recipes.
_TESTS_SHARE = 0.5
# Kept back from what is begun: a step that takes longer than it should, and the writing.
_RESERVE_SECONDS = 20.0
# About 1.2 B parameters in the backbone; for a GPU of 40 GiB and more.
_LARGER = {
    "student.model.hidden_size": 2048,
    "student.model.num_layers": 24,
    "student.model.num_heads": 32,
    "student.model.num_kv_heads": 8,
    "student.model.intermediate_size": 6144,
}
_BARS = Bars(
    {"optimizer_share_gb10-single": 0.25, "cuda_tests": 0.0}, at_most={"optimizer_share_gb10-single", "cuda_tests"}
)

app = typer.Typer(add_completion=False)


class GpuResults(BenchmarkResults):
    """``gpu_<time>.json``.

    Attributes:
        versions: of CUDA, cuDNN and the driver's capability, where there is a GPU.
        tests: the last lines of the CUDA tests.
    """

    versions: dict[str, Any]
    tests: list[str]


@dataclass
class GpuRun:
    """One run: until when it may go on, and what it has found.

    Attributes:
        device: that is measured.
        started, minutes: when it began, and how long it may take.
        quick: tiny models.
        out: folder of the results file.
    """

    device: torch.device
    started: float
    minutes: float
    quick: bool
    out: Path
    machine: dict[str, Any] = field(default_factory=machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    results: list[Result] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.started + 60 * self.minutes - time.monotonic() - _RESERVE_SECONDS

    def add(self, *results: Result) -> None:
        """Writes results down."""
        self.results += results
        self.file().write(self.out)
        for result in results:
            typer.echo(f"{result.id}: {result.value} {result.unit}", err=True)

    def file(self) -> GpuResults:
        """What is known so far; the file's name stays the same."""
        versions: dict[str, Any] = {"cuda": torch.version.cuda, "matmul": torch.get_float32_matmul_precision()}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            versions |= {
                "cudnn": torch.backends.cudnn.version(),
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / _GIB, 1),
            }
        return GpuResults(
            name="gpu",
            command=command_line("benchmarks.gpu"),
            device=device_description(self.device),
            date=self.date,
            seed=0,
            results=tuple(self.results),
            bars=dict(_BARS.figures),
            measured=self.measured,
            notes=[*self.notes, "Steps learn random ids with random rows of a teacher; medians of wall-clock time."],
            machine=self.machine,
            seconds=round(time.monotonic() - self.started, 1),
            versions=versions,
            tests=self.tests,
        )


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu to try the script.")] = "cuda",
    minutes: Annotated[float, typer.Option(min=0.5, help="That all of it may take.")] = 8.0,
    quick: Annotated[bool, typer.Option(help="Tiny models instead of the gb10 recipes'.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for gpu_<time>.json.")] = Path("results"),
) -> None:
    """Runs the CUDA tests and measures the gb10 recipes' student steps, then a larger one."""
    started = time.monotonic()
    with errors_reported(OSError, ValueError):
        chosen = torch.device(choose_device("--device", device, torch.cuda.device_count()))
        run = GpuRun(chosen, started, minutes, quick, out)
        _run(run)
        file = run.file()
        file.show(out, results_table(run.results, _BARS, file.device, file.notes))


def _run(run: GpuRun) -> None:
    _tests(run)
    recipes_dir = TrainerSettings().recipes_dir
    names = ("smoke",) if run.quick else ("gb10-single", "gb10-dual")
    recipes = {name: load_recipe(name, recipes_dir) for name in names}
    if not run.quick:
        recipes["larger"] = load_recipe("gb10-dual", recipes_dir, _LARGER)
    for name, recipe in recipes.items():
        if run.left <= 0:
            run.notes.append(f"{name}: no time left")
            continue
        try:
            _measure(run, name, recipe)
        # The smaller ones' figures are worth having.
        except torch.OutOfMemoryError as error:
            run.notes.append(f"{name}: {str(error).splitlines()[0]}")
            run.add(Result(id=f"tokens_per_s_{name}", value=None, unit="tokens/s"))


def _tests(run: GpuRun) -> None:
    """The CUDA tests in a process of their own; how many failed."""
    seconds = max(1.0, _TESTS_SHARE * run.left)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *map(str, CUDA_TESTS)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        run.notes.append(f"cuda_tests: not done after {seconds:.0f} s")
        run.add(Result(id="cuda_tests", value=None, unit="failures"))
        return
    lines = done.stdout.strip().splitlines()
    run.tests = lines[-20:]
    failed: int | None = sum(line.startswith(("FAILED", "ERROR")) for line in lines)
    if done.returncode not in (0, 1):
        run.notes.append(f"cuda_tests: pytest ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        failed = None
    elif not failed and " passed" not in "".join(lines[-1:]):
        run.notes.append("cuda_tests: all were skipped")
        failed = None
    run.add(Result(id="cuda_tests", value=failed, unit="failures"))


def _measure(run: GpuRun, name: str, recipe: Recipe) -> None:
    """A recipe's step: as many as there is time for, at most :data:`_REPEATS` after the warm-up."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    step = StudentStep(recipe, run.device)
    taken: list[StepParts] = []
    while len(taken) < _WARM + _REPEATS and (not taken or run.left > taken[-1].passes + taken[-1].optimizer):
        taken.append(step.timed())
    counted = taken[_WARM:] or taken[-1:]
    seconds = [parts.passes + parts.optimizer for parts in counted]
    paces = [step.tokens / each for each in seconds]
    share = statistics.median(parts.optimizer_share for parts in counted)
    run.measured[name] = {
        "steps": [vars(parts) for parts in taken],
        "tokens_per_step": step.tokens,
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "sizes": recipe.student.model,
    }
    pace = statistics.median(paces)
    found = [
        Result(id=f"tokens_per_s_{name}", value=pace, unit="tokens/s", low=min(paces), high=max(paces)),
        Result(id=f"optimizer_share_{name}", value=share, unit="of time"),
    ]
    if run.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.device) / _GIB
        found.append(Result(id=f"peak_memory_{name}", value=peak, unit="GiB"))
    run.add(*found)


if __name__ == "__main__":
    app()
