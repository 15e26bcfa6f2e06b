"""inference bench: decode speed beside a token-level model."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from latentforge.core.command_line import errors_reported
from latentforge.inference.cli import decode_speed
from latentforge.inference.cli.local import newest_snapshot
from latentforge.inference.cli.options import Checkpoints, MaxTokens, Run, TopK, request_of
from latentforge.inference.cli.writing import interruptible
from latentforge.model.sampling import SamplingParams

_PLAIN, _NUCLEUS = (1.0, 1.0), (0.8, 0.95)


def bench(
    prompts_file: Annotated[Path, typer.Option(help="One prompt a line.")] = Path("prompts.txt"),
    max_tokens: MaxTokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Times that every prompt is run.")] = 5,
    temperature: Annotated[
        float | None, typer.Option("--temp", min=0, max=100, help="Of the sampling; default: see --top-p.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Without it and --temp both 1 / 1 and 0.8 / 0.95 are measured.")
    ] = None,
    top_k: TopK = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    results: Annotated[Path, typer.Option(help="Folder for bench_<time>.json.")] = Path("results"),
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Measure decode speed beside a token-level model with the same backbone."""
    samplings = {
        suffix: _params(one_temperature, one_top_p, top_k, seed)
        for suffix, (one_temperature, one_top_p) in _settings(temperature, top_p).items()
    }
    with interruptible(), errors_reported(ValueError):
        prompts = decode_speed.read_prompts(prompts_file)
        snapshot = newest_snapshot(checkpoints, run)
        found = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("decoding", total=2 * repeats * len(prompts) * len(samplings))
            for suffix, params in samplings.items():
                measured = decode_speed.measure(
                    snapshot, prompts, max_tokens, repeats, params, lambda: progress.advance(task)
                )
                found += measured.results(suffix)
    command = f"inference {shlex.join(sys.argv[1:])}"
    how = {"max_tokens": max_tokens, "repeats": repeats, "num_prompts": len(prompts)}
    path = decode_speed.write(results, snapshot, found, command, samplings, seed, **how)
    console = Console()
    # Figures are compared by eye, so a narrow pipe must not fold them.
    console.width = max(console.width, 110)
    title = f"{snapshot.id}: {len(prompts)} prompts, {max_tokens} tokens each, {repeats} repeats"
    console.print(decode_speed.table(found, title))
    for suffix, params in samplings.items():
        typer.echo(f"decode_tokens_per_s{suffix}: temperature {params.temperature:g}, top_p {params.top_p:g}")
    typer.echo(f"written to {path}")


def _settings(temperature: float | None, top_p: float | None) -> dict[str, tuple[float, float]]:
    """Temperature and top_p of every measurement, by the suffix of its results."""
    if temperature is None and top_p is None:
        return {"": _PLAIN, "_nucleus": _NUCLEUS}
    return {"": (1.0 if temperature is None else temperature, 1.0 if top_p is None else top_p)}


def _params(temperature: float, top_p: float, top_k: int, seed: int) -> SamplingParams:
    request = request_of(prompt="", temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    return SamplingParams.model_validate(request.model_dump(include=set(SamplingParams.model_fields)))
