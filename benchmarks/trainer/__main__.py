"""python -m benchmarks.trainer: all that is measured of training, on one machine; exit code 0 whatever the figures."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.benchmark_results import Bars, BenchmarkResults, asked_ids, command_line, machine, results_table
from benchmarks.progress import BenchProgress
from benchmarks.trainer.bench import BenchError, TrainerBench
from benchmarks.trainer.registry import MEASUREMENTS
from latentforge.core.command_line import errors_reported
from latentforge.core.devices import choose_device
from latentforge.core.results import Result
from latentforge.model.devices import device_description
from latentforge.trainer.errors import TrainerError
from tools.processes import ChildError, StoppedError, stop_on_signals

_REPEATS, _STEPS = 12, 1

app = typer.Typer(add_completion=False)


class TrainerBenchResults(BenchmarkResults):
    """``bench_trainer_<time>.json``.

    Attributes:
        plan: how much was measured.
    """

    plan: dict[str, Any]


@app.command()
def main(
    only: Annotated[str | None, typer.Option(help="Ids of what is measured, separated by commas.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Figures of each side, of which the median counts.")] = _REPEATS,
    device: Annotated[str, typer.Option(help="That models are trained on: auto, cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data and noise.")] = 0,
    stream_gb: Annotated[float, typer.Option(min=0.1, help="Gigabytes of text that are packed for stream.")] = 5.0,
    quick: Annotated[bool, typer.Option(help="A look whether it works: tiny models, one repeat.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench_trainer_<time>.json.")] = Path("results"),
) -> None:
    """Measures training: its speed, what it loses, what it waits for and what it needs."""
    with errors_reported(OSError, ValueError):
        chosen = torch.device(choose_device("--device", device, torch.cuda.device_count()))
        ids = list(MEASUREMENTS) if only is None else asked_ids(only, list(MEASUREMENTS), str(chosen))
        try:
            with stop_on_signals():
                _run(ids, chosen, out, repeats=1 if quick else repeats, seed=seed, quick=quick, stream_gb=stream_gb)
        except StoppedError as stopped:
            typer.echo(f"bench-trainer: {stopped}; everything it started is stopped", err=True)
            raise typer.Exit(stopped.exit_code) from None


def _run(
    ids: list[str], device: torch.device, out: Path, *, repeats: int, seed: int, quick: bool, stream_gb: float
) -> None:
    started, before = time.monotonic(), machine()
    chosen = [MEASUREMENTS[name] for name in ids]
    found: list[Result] = []
    with ExitStack() as stack:
        progress = stack.enter_context(BenchProgress(sum(m.figures * repeats for m in chosen)))
        bench = TrainerBench(
            repeats=repeats,
            report=progress,
            quick=quick,
            device=device,
            scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-trainer-"))),
            steps=_STEPS,
            seed=seed,
            stream_gb=stream_gb,
        )
        for name, measurement in zip(ids, chosen, strict=True):
            progress.begin(name)
            try:
                found.extend(measurement.measure(bench))
            # The other figures are worth having.
            except (BenchError, ChildError, OSError, TimeoutError, TrainerError) as error:
                bench.notes.append(f"{name} could not be measured: {error}")
                found.append(Result(id=name, value=None, unit=""))
    at_least = {key: bar for m in chosen for key, bar in m.at_least.items()}
    at_most = {key: bar for m in chosen for key, bar in m.at_most.items()}
    bars = Bars(at_least | at_most, at_most=set(at_most))
    # As one line each: a terminal folds them as it wants.
    how = [f"{name}: {' '.join((m.measure.__doc__ or '').split())}" for name, m in zip(ids, chosen, strict=True)]
    notes = [*bench.notes, *how]
    plan = {"recipe": bench.recipe, "repeats": repeats, "steps": bench.steps, "quick": quick}
    seconds = round(time.monotonic() - started, 1)
    TrainerBenchResults(
        name="bench_trainer",
        command=command_line("benchmarks.trainer"),
        device=device_description(device),
        seed=seed,
        results=tuple(found),
        plan=plan,
        bars=dict(bars.figures),
        measured=bench.measured,
        notes=notes,
        machine=before,
        seconds=seconds,
    ).show(out, results_table(found, bars, f"recipe {bench.recipe}, {repeats} repeats", notes))


if __name__ == "__main__":
    app()
