"""python -m benchmarks.inference: all that is compared, in one run on one machine; exit code 0 whatever the figures."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.benchmark_results import asked_ids, command_line, machine, results_table
from benchmarks.inference import inprocess, rest
from benchmarks.inference.bench import InferenceBench
from benchmarks.inference.clients import LoadError
from benchmarks.inference.plan import QUICK, InferencePlan
from benchmarks.inference.report import BARS, NOTES, InferenceBenchResults
from benchmarks.inference.servers import InferenceServers
from benchmarks.progress import BenchProgress
from latentforge.core.command_line import errors_reported
from latentforge.core.devices import choose_device
from latentforge.core.results import Result
from latentforge.model.devices import device_description
from tools.processes import ChildError, StoppedError, stop_on_signals

_LOGS = Path("runs") / "logs" / "bench-inference"

# In the order in which they run, each with its figures for each repeat and besides.
MEASUREMENTS: dict[str, tuple[Callable[[InferenceBench], Result], int, int]] = {
    "step_over_floor": (inprocess.step_over_floor, 1, 0),
    "decode_16_vs_vllm": (inprocess.decode_16_vs_vllm, 1, 2),
    "decode_16_vs_hf": (inprocess.decode_16_vs_hf, 2, 0),
    "decode_1": (inprocess.decode_1, 2, 0),
    "decode_1_fast": (inprocess.decode_1_fast, 2, 0),
    "decode_1_vs_twin": (inprocess.decode_1_vs_twin, 2, 0),
    "top_p": (inprocess.top_p, 8, 0),
    "rest_16": (rest.rest_16, 2, 0),
    "rest_16_vs_hf": (rest.rest_16_vs_hf, 2, 0),
    "rest_16_vs_token_level": (rest.rest_16_vs_token_level, 2, 0),
    "http_ms": (rest.http_ms, 1, 0),
    "hostile": (rest.hostile, 1, 0),
    "swap_p99": (rest.swap_p99, 2, 0),
}
# What a GPU has something to say about, and needs neither a server nor vLLM's CPU build.
ON_CUDA = ("decode_16_vs_hf", "decode_1", "decode_1_fast", "decode_1_vs_twin", "top_p")

app = typer.Typer(add_completion=False)


@app.command()
def main(
    only: Annotated[str | None, typer.Option(help="Ids of what is measured, separated by commas.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Figures of each side.")] = None,
    device: Annotated[str, typer.Option(help="Of the models in this process: cpu, cuda or cuda:N.")] = "cpu",
    quick: Annotated[bool, typer.Option(help="A look whether it works: tiny models, one repeat.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for bench_inference_<time>.json.")] = Path("results"),
) -> None:
    """Measures inference beside transformers, vLLM and a token-level student.

    Starts servers and stops them. On a CPU vLLM's figures need .venv-vllm (python -m tools.vllm_env); on a GPU what
    needs a server is left out.
    """
    plan = QUICK if quick else InferencePlan()
    if repeats is not None:
        plan = replace(plan, repeats=repeats)
    failures = ChildError, OSError, TimeoutError, ValueError
    try:
        with errors_reported(*failures), stop_on_signals():
            _run(plan, _chosen(only, device), device, results)
    except StoppedError as stopped:
        typer.echo(f"bench-inference: {stopped}; everything it started is stopped", err=True)
        raise typer.Exit(stopped.exit_code) from None


def _chosen(only: str | None, device: str) -> list[str]:
    ids = list(ON_CUDA if device.startswith("cuda") else MEASUREMENTS)
    if only is None:
        # On a CPU the fastest there is stands beside many at once: vLLM.
        return [name for name in ids if name in BARS.figures or device.startswith("cuda")]
    return asked_ids(only, ids, device)


def _run(plan: InferencePlan, ids: list[str], device: str, results: Path) -> None:
    started = time.monotonic()
    before = machine()
    chosen = torch.device(choose_device("--device", device, torch.cuda.device_count()))
    total = sum(plan.repeats * MEASUREMENTS[name][1] + MEASUREMENTS[name][2] for name in ids)
    found: list[Result] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-inference-")))
        progress = stack.enter_context(BenchProgress(total))
        bench = InferenceBench(
            plan=plan,
            repeats=plan.repeats,
            device=chosen,
            threads=tuple(dict.fromkeys((1, len(os.sched_getaffinity(0))))) if chosen.type == "cpu" else (1,),
            servers=InferenceServers(stack, _LOGS, "cpu"),
            scratch=scratch,
            report=progress,
        )
        for name in ids:
            progress.begin(name)
            try:
                found.append(MEASUREMENTS[name][0](bench))
            # The other figures are worth having.
            except (LoadError, TimeoutError) as error:
                bench.notes.append(f"{name} could not be measured: {error}")
                found.append(Result(id=name, value=None, unit=""))
    _report(bench, found, before, results, seconds=time.monotonic() - started)


def _report(
    bench: InferenceBench, found: list[Result], machine: dict[str, Any], results: Path, *, seconds: float
) -> None:
    plan = bench.plan
    title = f"{plan.clients} clients, prompts of {plan.prompt_tokens} tokens, {plan.new_tokens} new ones, "
    title += f"{plan.repeats} repeats"
    notes = [*bench.notes, *NOTES]
    InferenceBenchResults(
        name="bench_inference",
        command=command_line("benchmarks.inference"),
        device=device_description(bench.device),
        seed=0,
        results=tuple(found),
        plan=asdict(plan),
        bars=dict(BARS.figures),
        measured=bench.measured,
        notes=notes,
        machine=machine,
        seconds=round(seconds, 1),
    ).show(results, results_table(found, BARS, title, notes))


if __name__ == "__main__":
    app()
