"""python -m benchmarks.long_context: K tokens a step behind long contexts; exit code 0 whatever the figures."""

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.benchmark_results import asked_ids, command_line, machine, results_table
from benchmarks.long_context.cells import LongContextBench, LongContextFigures
from benchmarks.long_context.chart import draw
from benchmarks.long_context.device_speed import measured_speed
from benchmarks.long_context.plan import MODELS, QUICK, REQUESTS_ON_CUDA, LongContextCell, LongContextPlan
from benchmarks.long_context.report import BARS, NOTES, LongContextResults, compared, print_figures
from benchmarks.progress import BenchProgress
from latentforge.core.command_line import errors_reported
from latentforge.core.devices import choose_device
from latentforge.core.results import Result
from latentforge.model.devices import device_description

app = typer.Typer(add_completion=False)


@app.command()
def main(
    only: Annotated[str | None, typer.Option(help="Cells, such as kv_16x2k, separated by commas.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Figures of each model in a cell.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    vllm: Annotated[bool, typer.Option("--vllm", help="Also the twin in vLLM's CPU build, in .venv-vllm.")] = False,
    quick: Annotated[bool, typer.Option(help="A look whether it works: tiny models, one repeat.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for long_context_<time>.json and .png.")] = Path("results"),
) -> None:
    """Measures tokens/s at 1 and 16 requests (and 64 on a GPU) behind 2k and 8k tokens, and draws them.

    Students of K = 4 and 8 beside a token-level model with the same backbone, all in the serving engine. After every
    cell the file is written anew, so whatever ends the run keeps what was measured.
    """
    plan = QUICK if quick else LongContextPlan()
    if device.startswith("cuda") and not quick:
        plan = replace(plan, requests=REQUESTS_ON_CUDA)
    if repeats is not None:
        plan = replace(plan, repeats=repeats)
    cells = {cell.id: cell for cell in plan.cells}
    ids = list(cells) if only is None else asked_ids(only, list(cells), device)
    with errors_reported(OSError, ValueError):
        chosen = torch.device(choose_device("--device", device, torch.cuda.device_count()))
        _run(plan, [cells[name] for name in ids], chosen, vllm, results)


def _run(plan: LongContextPlan, cells: list[LongContextCell], device: torch.device, vllm: bool, folder: Path) -> None:
    started, before = time.monotonic(), machine()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    threads = tuple(dict.fromkeys((1, len(os.sched_getaffinity(0))))) if device.type == "cpu" else (1,)
    figures: list[LongContextFigures] = []
    found: list[Result] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="long-context-")))
        progress = stack.enter_context(BenchProgress(len(cells) * plan.repeats * (len(MODELS) + vllm)))
        progress.begin("measuring the device")
        torch.set_num_threads(max(threads))
        bench = LongContextBench(
            plan=plan,
            repeats=plan.repeats,
            report=progress,
            device=device,
            threads=threads,
            speed=measured_speed(device, plan.read_bytes, plan.product_size),
            vllm=vllm,
            scratch=scratch,
        )

        def record() -> LongContextResults:
            return LongContextResults(
                name="long_context",
                command=command_line("benchmarks.long_context"),
                device=device_description(device),
                date=date,
                seed=0,
                results=tuple(found),
                bars=dict(BARS.figures),
                measured=bench.measured,
                notes=[*bench.notes, *NOTES],
                machine=before,
                seconds=round(time.monotonic() - started, 1),
                plan=asdict(plan),
                speed=bench.speed,
                figures=tuple(figures),
            )

        for cell in cells:
            try:
                of_cell = bench.figures_of(cell)
            # The smaller ones' figures are worth having.
            except torch.OutOfMemoryError as error:
                bench.notes.append(f"{cell.id}: {str(error).splitlines()[0]}")
                found.append(Result(id=cell.id, value=None, unit="tokens/s"))
                continue
            figures += of_cell
            found += compared(bench, of_cell)
            record().write(folder)
    _show(record(), plan, folder)


def _show(record: LongContextResults, plan: LongContextPlan, folder: Path) -> None:
    title = f"{plan.size.layers} x {plan.size.width}, {plan.size.vocab_size:,} ids, {plan.repeats} repeats"
    print_figures(record)
    path = record.show(folder, results_table(record.results, BARS, title, record.notes))
    if not record.figures:
        return
    chart = path.with_suffix(".png")
    draw(record.figures, chart, f"{title}; {record.device}, {record.date[:10]}")
    typer.echo(f"drawn to {chart}")


if __name__ == "__main__":
    app()
