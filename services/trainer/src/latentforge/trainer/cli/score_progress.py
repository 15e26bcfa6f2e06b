"""How far `trainer score` is: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from latentforge.trainer.kept.score import ScoreProgress


_LINE_EVERY_SECONDS = 10.0


@contextmanager
def score_bar(console: Console) -> "Iterator[Callable[[ScoreProgress], None]]":
    """Gives what is called as often as there is news."""
    columns = (
        TextColumn("scoring"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    last_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(progress: "ScoreProgress") -> None:
            nonlocal last_line
            speed = f"{progress.positions / max(progress.seconds, 1e-6):,.0f} tok/s"
            failed = f"  {progress.failed} failed" if progress.failed else ""
            bar.update(task, total=progress.total, completed=progress.done, description=f"{speed}{failed}")
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= _LINE_EVERY_SECONDS:
                last_line = now
                eta = "" if progress.eta is None else f"  eta {progress.eta:.0f} s"
                line = f"scored {progress.done:,}/{progress.total:,} sequences  {speed}{failed}{eta}"
                console.print(line, soft_wrap=True, highlight=False)

        yield show
