"""What an experiment prints and writes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer
from rich.console import Console
from rich.table import Table

from experiments.figures import Measured
from latentforge.core.results import Result, ResultsFile, cpu_description


class ModelResult(Result):
    """A result about models.

    Attributes:
        size: of the backbone.
        seeds: how many low and high are over.
        student, token_level: runs that are compared.
        best: the objective that is.
        tokens: that were learnt.
        nats_per_token, baseline_nats_per_token: held-out, of those whose speed is compared.
        beaten: token-level sizes that are slower and worse, or their number.
        beaten_demo: that number at the demo's vocabulary.
        beaten_in_writing: those whose text the teacher likes less.
    """

    model_config = ConfigDict(extra="forbid")

    size: str | None = None
    seeds: int | None = None
    student: str | None = None
    token_level: str | None = None
    best: str | None = None
    tokens: int | None = None
    nats_per_token: float | None = None
    baseline_nats_per_token: float | None = None
    beaten: list[str] | int | None = None
    beaten_demo: int | None = None
    beaten_in_writing: list[str] | None = None

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if value is not None or name in Result.model_fields}


class ModelResults(ResultsFile):
    """What an experiment writes: every model with all that was measured of it (:meth:`Measured.record`)."""

    scale: str | None = None
    models: list[dict[str, Any]]
    results: tuple[ModelResult, ...]


def command_line() -> str:
    return " ".join(["python -m experiments", *sys.argv[1:]])


def write_models(
    folder: Path, name: str, rows: Sequence[dict[str, Any]], models: Sequence[dict[str, Any]], scale: str | None = None
) -> Path:
    """Writes ``<folder>/<name>_<time>.json`` and returns its path."""
    return ModelResults(
        name=name,
        command=command_line(),
        device=cpu_description(),
        seed=0,
        results=tuple(ModelResult.model_validate(row) for row in rows),
        scale=scale,
        models=list(models),
    ).write(folder)


def models_table(measured: Sequence[Measured]) -> Table:
    table = Table(title="held-out standard library")
    names = ("run", "tokens", "nats/token", "KL to teacher", "BrierLM", "packages: nats/token")
    written = ("T=1: teacher's nats", "repeated", "T=0.7: teacher's nats", "repeated")
    for name in (*names, *written, "tokens/s", "16 at once", "MFLOP/token"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for m in measured:
        figures = m.nats, m.value("kl_to_teacher"), m.value("brier_lm"), m.value("nats_per_token", "packages")
        texts = [m.value(f"gen_{t}_{figure}") for t in ("t1", "t07") for figure in ("teacher_nats", "repetition")]
        speed = (
            (m.speed.one_request, m.speed.many_at_once, m.speed.training_flops / 1e6) if m.speed else (None, None, None)
        )
        cells = [*(_number(f, 3) for f in (*figures, *texts)), *(_number(s, 1) for s in speed)]
        table.add_row(m.model.run, f"{m.model.tokens:,}", *cells)
    return table


def autoencoders_table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="held-out tokens that come back")
    shares = ("token_exact", "token_exact_noisy", "chunk_exact", "chunk_exact_noisy", "token_exact_at_student")
    figures = ("k", "d", "hidden_size", *shares, "seconds")
    for name in figures:
        table.add_column(name, justify="right")
    for f in found:
        table.add_row(*(f"{f[name]:.5f}" if name in shares else f"{f[name]:.0f}" for name in figures))
    return table


def print_rows(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f} times {row['baseline']}"
        console.print(f"{row['id']}: {row['value']:.4g} {row['unit']}{ratio}", highlight=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
