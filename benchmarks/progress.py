"""How far a run is: a bar with the time that is left on a terminal, a line for each figure elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class BenchProgress:
    """Counts figures against how many there will be about.

    Args:
        total: figures of the whole run.
    """

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str) -> None:
        """Something that gives no figure by itself begins."""
        self._bar.update(self._task, description=what)
        self._say(what)

    def figure(self, what: str, value: str = "") -> None:
        """One figure is there."""
        text = f"{what}: {value}" if value else what
        self._bar.update(self._task, advance=1, description=text)
        self._say(text)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
