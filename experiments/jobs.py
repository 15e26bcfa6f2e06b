"""Runs jobs side by side, skips what is done, and says how long the rest will take."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.commands import CommandJob
from tools.processes import Child, ChildError, Children

_LOOK_EVERY = 0.2


class StaleError(RuntimeError):
    """What a job would make is there, but another command made it."""


def run_jobs(
    children: Children, jobs: Sequence[CommandJob], *, records: Path, at_once: int, console: Console, what: str
) -> None:
    """Runs the jobs that are not done, in order, ``at_once`` at a time.

    Args:
        children: starts them.
        jobs: what is to be done.
        records: folder that keeps the command of each job that was done.
        at_once: how many run side by side.
        console: for progress.
        what: the jobs are, in a word or two.

    Raises:
        ChildError: one failed; the others are stopped. What was done stays done, and the same command resumes.
        StaleError: one was done with other settings.
    """
    left = [job for job in jobs if not _is_done(job, records)]
    if done := len(jobs) - len(left):
        console.print(f"{what}: {done} of {len(jobs)} done before", highlight=False)
    columns = (
        TextColumn(f"{what} {{task.description}}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    running: list[tuple[CommandJob, Child, float]] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        # By tokens, so that the estimate knows that a short job is no measure of a long one.
        task = bar.add_task("", total=sum(max(1, job.tokens) for job in left))
        while left or running:
            while left and len(running) < at_once:
                job = left.pop(0)
                running.append((job, children.start(job.name.replace(" ", "-"), job.command), time.monotonic()))
            ended = [entry for entry in running if entry[1].exit_code() is not None]
            for job, child, started in ended:
                running.remove((job, child, started))
                children.finish(child)
                if not job.done.exists():
                    raise ChildError(f"{job.name} ended well, but left no {job.done}; its log is {child.log}")
                _record(job, records).write_text(shlex.join(job.command[1:]), encoding="utf-8")
                bar.advance(task, max(1, job.tokens))
                console.print(f"{job.name}: {time.monotonic() - started:.0f} s", highlight=False)
            time.sleep(_LOOK_EVERY)


def _is_done(job: CommandJob, records: Path) -> bool:
    if not job.done.exists():
        return False
    record = _record(job, records)
    if record.is_file() and (before := record.read_text(encoding="utf-8")) != shlex.join(job.command[1:]):
        raise StaleError(
            f"{job.done} was made by `{before}`, now it would be `{shlex.join(job.command[1:])}`; "
            "give another --folder, or delete what is stale"
        )
    return True


def _record(job: CommandJob, records: Path) -> Path:
    records.mkdir(parents=True, exist_ok=True)
    return records / f"{job.name.replace(' ', '-')}.txt"
