"""Progress of an evaluation: a bar with the time left on a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


@contextmanager
def stage(console: Console, name: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives what is called when one more of ``total`` parts is done."""
    started = last_line = time.monotonic()
    done = 0
    columns = (TextColumn(name), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance() -> None:
            nonlocal done, last_line
            done += 1
            bar.advance(task)
            now = time.monotonic()
            if not console.is_terminal and (done == total or now - last_line >= _LINE_EVERY_SECONDS):
                last_line = now
                left = (now - started) / done * (total - done)
                when = f"eta {left:.0f} s" if done < total else f"{now - started:.1f} s"
                console.print(f"{name} {done}/{total}  {when}", highlight=False)

        yield advance
