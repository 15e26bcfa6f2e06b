"""The whole job: data, autoencoder, student, summary; what is finished is not done again."""

import json
import time
from pathlib import Path
from typing import Any

from latentforge.core.files import write_atomically
from latentforge.trainer.data.prepare import run_data
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.choose import meet_teacher
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.student import result_file, train_student

SUMMARY = "summary.json"


def run_pipeline(
    run: RunContext, data: Path | None = None, held_out: Path | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """Runs every stage that is not finished and writes runs/<run>/summary.json.

    Args:
        run: the run.
        data: JSONL file or packed folder; None takes the standard library of the running Python.
        held_out: the same for validation; None divides the data (see :func:`run_data`).
        fresh: see :func:`train_student`.

    Returns:
        The summary.

    Raises:
        TrainerError: something that the user can put right.
        Interrupted: asked to stop; the same command goes on.
    """
    started = time.monotonic()
    if run.recipe.teacher.targets != "text" and not result_file(run, "student").is_file():
        # A teacher that cannot be used is better known before the autoencoder has trained for minutes.
        _meet_teacher(run)
    train, check = run_data(run, data, held_out)
    data_seconds = round(time.monotonic() - started, 2)
    autoencoder = train_autoencoder(run, train, check)
    student = train_student(run, train, check, run.folder / "autoencoder", fresh=fresh)
    summary = _summary(run, autoencoder, student, data_seconds)
    path = run.folder / SUMMARY
    if path.is_file():
        # A rerun of a finished run packs nothing, and must not say that packing took no time.
        summary["seconds"]["data"] = json.loads(path.read_text(encoding="utf-8"))["seconds"]["data"]
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    run.status.stage, run.status.eta = "finished", 0.0
    return summary


def targets_line(summary: dict[str, Any]) -> str:
    """One line about where the run's targets came from."""
    if summary["targets"] == "generate":
        made = summary["generated"]
        return (
            f"generated: {made['continuations']:,} continuations of {made['prompts']:,} prompts, "
            f"{made['tokens']:,} tokens; {made['dropped']:,} dropped"
        )
    if summary["targets"] == "text":
        return "no teacher was asked"
    cache = summary["cache"]
    return (
        f"cache: {cache['hits']} of {cache['hits'] + cache['misses']} sequences and {cache['rows_from_cache']:,} of "
        f"{cache['rows']:,} rows came from the cache, which holds {cache['bytes'] / 1e6:,.1f} MB; the gateway "
        f"has saved {cache['saved_seconds']:.1f} s of teacher time"
    )


def _meet_teacher(run: RunContext) -> None:
    with TeacherLink.of(run.settings, run.stop) as link:
        meet_teacher(run, link)


def _summary(
    run: RunContext, autoencoder: dict[str, Any], student: dict[str, Any], data_seconds: float
) -> dict[str, Any]:
    curve = student["curve"]
    ends = {
        f"{name}_{end}": curve[i][name]
        for name in ("kd", "ce", "mse")
        for end, i in (("first", 0), ("last", -1))
        if name in curve[i]
    }
    return {
        "run": run.name,
        "recipe": run.recipe.model_dump(),
        "seconds": {"data": data_seconds, "autoencoder": autoencoder["seconds"], "student": student["seconds"]},
        "ae": {
            n: autoencoder[n]
            for n in ("k", "d", "token_exact", "chunk_exact", "token_exact_noisy", "chunk_exact_noisy", "loss")
        },
        "student": {"steps": student["steps"], "tokens": student["tokens"], **ends, "seconds": student["seconds"]},
        "curve": curve,
        "unigram_ce": student["unigram_ce"],
        "held_out_tokens": student["held_out_tokens"],
        "teacher": student["teacher"],
        "targets": student["targets"],
        **{name: student[name] for name in ("cache", "generated") if name in student},
        "checkpoints": student["checkpoints"],
    }
