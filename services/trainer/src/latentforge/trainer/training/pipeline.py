"""The whole job: data, autoencoder, student, summary; what is finished is not done again."""

import time
from pathlib import Path

from latentforge.trainer.data.prepare import run_data
from latentforge.trainer.results import (
    SUMMARY,
    AutoencoderFigures,
    AutoencoderResult,
    RunSummary,
    StageSeconds,
    StudentFigures,
    StudentResult,
    TargetFigures,
)
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.sinks.live import write_status
from latentforge.trainer.targets.choose import met_teacher
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.estimates.disk import check_disks
from latentforge.trainer.training.estimates.forecast import StudentForecast
from latentforge.trainer.training.init_checkpoint import adopt_autoencoder, check_checkpoint
from latentforge.trainer.training.state import has_state
from latentforge.trainer.training.student import refuse_others_checkpoints, result_file, state_folder, train_student


def run_pipeline(
    run: RunContext, data: Path | None = None, held_out: Path | None = None, *, fresh: bool = False
) -> RunSummary:
    """Runs every stage that is not finished and writes runs/<run>/summary.json.

    Args:
        run: the run.
        data: JSONL file or packed folder; None takes the standard library of the running Python.
        held_out: the same for validation; None divides the data (see :func:`run_data`).
        fresh: see :func:`train_student`.

    Raises:
        TrainerError: something that the user can put right.
        Interrupted: asked to stop; the same command resumes.
    """
    started = time.monotonic()
    if not result_file(run, "student").is_file():
        # What the student would fail for is better known before the autoencoder has trained for minutes.
        refuse_others_checkpoints(run)
        if not has_state(state_folder(run, "student")):
            check_checkpoint(run)
        with met_teacher(run):
            pass
    run.status.stage = "data"
    if run.ranks.is_main:
        write_status(run.folder, run.status)
    if not result_file(run, "student").is_file():
        check_disks(run, ["student"] if run.recipe.student.init_checkpoint else ["autoencoder", "student"])
    with run.ranks.main_first():
        train, held_out_data = run_data(run, data, held_out)
    data_seconds = round(time.monotonic() - started, 2)
    started_from = run.recipe.student.init_checkpoint
    if started_from is None:
        forecast = StudentForecast(run.recipe, run.tokenizer)
        autoencoder = train_autoencoder(run, train, held_out_data, forecast)
    else:
        autoencoder = adopt_autoencoder(run, held_out_data, started_from)
    student = train_student(run, train, held_out_data, run.folder / "autoencoder", fresh=fresh)
    path = run.folder / SUMMARY
    if path.is_file():
        # A rerun of a finished run packs nothing, and must not say that packing took no time.
        data_seconds = RunSummary.read(path).seconds.data
    summary = _summary(run, autoencoder, student, data_seconds)
    if run.ranks.is_main:
        summary.write(path)
    run.status.stage, run.status.eta, run.status.run_eta = "finished", 0.0, 0.0
    return summary


def targets_line(summary: RunSummary) -> str:
    """One line about where the run's targets came from."""
    if (made := summary.generated) is not None:
        return (
            f"generated: {made.continuations:,} continuations of {made.prompts:,} prompts, "
            f"{made.tokens:,} tokens; {made.dropped:,} dropped"
        )
    if (cache := summary.cache) is not None:
        return (
            f"cache: {cache.hits} of {cache.hits + cache.misses} sequences and {cache.rows_from_cache:,} of "
            f"{cache.rows:,} rows came from the cache, which holds {cache.bytes / 1e6:,.1f} MB; the gateway "
            f"has saved {cache.saved_seconds:.1f} s of teacher time"
        )
    if (kept := summary.kept) is not None:
        return f"kept rows: {kept.found:,} of {kept.sequences:,} sequences had some, {kept.rows:,} rows"
    return "no teacher was asked"


def _summary(
    run: RunContext, autoencoder: AutoencoderResult, student: StudentResult, data_seconds: float
) -> RunSummary:
    first, last = student.curve[0], student.curve[-1]
    return RunSummary(
        run=run.name,
        recipe=run.recipe.model_dump(mode="json"),
        seconds=StageSeconds(data=data_seconds, autoencoder=autoencoder.seconds, student=student.seconds),
        ae=AutoencoderFigures(**autoencoder.model_dump(include=set(AutoencoderFigures.model_fields))),
        student=StudentFigures(
            steps=student.steps,
            tokens=student.tokens,
            kd_first=first.kd,
            kd_last=last.kd,
            ce_first=first.ce,
            ce_last=last.ce,
            mse_first=first.mse,
            mse_last=last.mse,
            acceptance_first=first.acceptance,
            acceptance_last=last.acceptance,
            seconds=student.seconds,
            tokens_per_s=round(student.tokens / max(student.seconds, 1e-6), 1),
            teacher_wait_seconds=student.teacher_wait_seconds,
        ),
        **{name: getattr(student, name) for name in TargetFigures.model_fields},
    )
