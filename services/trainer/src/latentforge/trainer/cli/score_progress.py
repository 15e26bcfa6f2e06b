"""How far `trainer score` is: a bar on a terminal, else a line now and then."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from latentforge.trainer.kept.score import ScoreProgress


_LINE_EVERY_SECONDS = 10.0


class ScoreBar:
    """Use as a context manager; :meth:`show` as often as there is news."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("scoring"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: "ScoreProgress") -> None:
        speed = f"{progress.positions / max(progress.seconds, 1e-6):,.0f} tok/s"
        failed = f"  {progress.failed} failed" if progress.failed else ""
        self._bar.update(self._task, total=progress.total, completed=progress.done, description=f"{speed}{failed}")
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            eta = "" if progress.eta is None else f"  eta {progress.eta:.0f} s"
            line = f"scored {progress.done:,}/{progress.total:,} sequences  {speed}{failed}{eta}"
            self._console.print(line, soft_wrap=True, highlight=False)
