"""Runs jobs side by side, skips what is done, and says how long the rest will take."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.experiments.commands import Job
from tools.processes import Child, ChildError, Children

_LOOK_EVERY = 0.2


def run_jobs(children: Children, jobs: Sequence[Job], *, at_once: int, console: Console, what: str) -> None:
    """Runs the jobs that are not done, in order, ``at_once`` at a time.

    Raises:
        ChildError: one failed; the others are stopped. What was done stays done, and the same command goes on.
    """
    left = [job for job in jobs if not job.done.exists()]
    if done := len(jobs) - len(left):
        console.print(f"{what}: {done} of {len(jobs)} done before", highlight=False)
    columns = (
        TextColumn(f"{what} {{task.description}}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    running: list[tuple[Job, Child, float]] = []
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
                bar.advance(task, max(1, job.tokens))
                console.print(f"{job.name}: {time.monotonic() - started:.0f} s", highlight=False)
            time.sleep(_LOOK_EVERY)
