"""What an experiment prints and writes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.measured import Measured
from experiments.results import ModelResult, ModelResults
from experiments.scales import HELD_OUT
from experiments.worth_measured import WorthRun
from latentforge.core.results import Result, cpu_description


def command_line() -> str:
    return " ".join(["python -m experiments", *sys.argv[1:]])


def write_models(
    folder: Path, name: str, results: Sequence[ModelResult], models: Sequence[dict[str, Any]], scale: str | None = None
) -> Path:
    """Writes ``<folder>/<name>_<time>.json`` and returns its path."""
    return ModelResults(
        name=name,
        command=command_line(),
        device=cpu_description(),
        seed=0,
        results=tuple(results),
        scale=scale,
        models=list(models),
    ).write(folder)


def models_table(measured: Sequence[Measured]) -> Table:
    table = Table(title="held-out standard library")
    names = (
        "run",
        "tokens",
        "nats/token",
        "KL to teacher, at least",
        "BrierLM",
        "packages: nats/token",
        "acceptance",
        "of 8 drafted",
    )
    written = ("T=1: teacher's nats", "repeated", "T=0.7: teacher's nats", "repeated")
    for name in (*names, *written, "tokens/s", "16 at once", "MFLOP/token"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for m in measured:
        others = "kl_to_teacher", "brier_lm", "acceptance", "draft_mean_accepted"
        kl, brier, acceptance, accepted = map(m.value, others)
        figures = m.nats, kl, brier, m.value("nats_per_token", "packages"), acceptance, accepted
        texts = [m.value(f"gen_{t}_{figure}") for t in ("t1", "t07") for figure in ("teacher_nats", "repetition")]
        speed = (
            (m.speed.one_request, m.speed.many_at_once, m.speed.training_flops / 1e6) if m.speed else (None, None, None)
        )
        cells = [*(_number(f, 3) for f in (*figures, *texts)), *(_number(s, 1) for s in speed)]
        table.add_row(m.model.run, f"{m.model.tokens:,}", *cells)
    return table


def autoencoders_table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="held-out tokens that come back")
    shares = ("token_exact", "token_exact_noisy", "chunk_exact", "chunk_exact_noisy")
    for name in ("run", "untrained: token_exact", *shares, "token_exact_at_student", "seconds"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for f in found:
        untrained = f["untrained"] and f["untrained"]["token_exact"]
        figures = untrained, *(f[name] for name in shares), f.get("token_exact_at_student")
        table.add_row(f["run"], *(_number(figure, 5) for figure in figures), f"{f['seconds']:.0f}")
    return table


def worth_table(runs: Sequence[WorthRun]) -> Table:
    table = Table(title="held-out nats/token, and nats/token that are lost without a part, with 95 % intervals")
    parts = ("backbone", "copy", "window", "latent")
    for name in (
        "architecture",
        "tokens",
        "rate",
        "library",
        "packages",
        *parts,
        "parameters",
        "training s",
        "tokens/s",
    ):
        table.add_column(name, justify="left" if name == "architecture" else "right")
    for run in runs:
        model, speed = run.measured.model, run.measured.speed
        nats = (_interval(run.figure("nats_per_token", text)) for text in HELD_OUT)
        worth = (_interval(run.figure(f"worth_{part}", HELD_OUT[0])) for part in parts)
        others = (None if speed is None else speed.parameters, run.seconds, run.tokens_per_s)
        table.add_row(
            run.architecture, f"{model.tokens:,}", f"{run.rate:g}", *nats, *worth, *(_number(o, 0) for o in others)
        )
    return table


def _interval(result: Result | None) -> str:
    if result is None:
        return ""
    bounds = (_number(bound, 3) for bound in (result.low, result.high))
    return f"{_number(result.value, 3)} [{', '.join(bounds)}]"


def print_results(console: Console, results: Sequence[ModelResult]) -> None:
    for result in results:
        ratio = "" if result.ratio is None else f", {result.ratio:.2f} times {result.baseline}"
        console.print(f"{result.id}: {result.value:.4g} {result.unit}{ratio}", highlight=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
