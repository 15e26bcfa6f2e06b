"""A bar on a terminal, and anywhere else a line now and then."""

import re
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from latentforge.core.manifest import TextSample
from latentforge.trainer.run.events import Event

LINE_EVERY_SECONDS = 10.0
_LONGEST_SAMPLE = 100
_DETAIL = re.compile(r"_k\d+$")


class Terminal:
    """Writes to a console; the bar is there until :meth:`close`."""

    def __init__(self, console: Console, stage: str, total: int, first: int) -> None:
        self._console, self._first = console, first
        self._last_line = time.monotonic()
        columns = (
            TextColumn(stage),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=first) if self._bar else None

    def take(self, event: Event) -> None:
        if event.kind == "started" and self._bar:
            self._bar.start()
        elif event.kind == "train":
            self._step(event)
        elif event.kind == "held_out":
            # A line has no room for each place in a chunk; the other readers have them.
            shown = {name: value for name, value in event.figures.items() if not _DETAIL.search(name)}
            self.say(f"{event.stage} {event.step}/{event.of}  held-out: {_described(shown)}")
        elif event.kind == "published":
            self.say(f"published {event.place}")
            for sample in event.samples:
                self.say(f"  {_line(sample)}")

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def _step(self, event: Event) -> None:
        assert event.pace is not None
        pace, notes = event.pace, [event.note] if event.note else []
        # Where something comes after the stage; otherwise its end is the run's.
        whole = [] if pace.run_eta in (None, pace.eta) else [f"run eta {pace.run_eta:.0f} s"]
        described = "  ".join([_described(event.figures), f"{pace.mean:,.0f} tok/s", *notes])
        now = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=event.step, description="  ".join([described, *whole]))
        elif now - self._last_line >= LINE_EVERY_SECONDS or event.step in (event.of, self._first + 1):
            self._last_line = now
            line = "  ".join([described, f"eta {pace.eta:.0f} s", *whole])
            self.say(f"{event.stage} {event.step}/{event.of}  {line}")


def _described(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{n} {v:.3g}" if abs(v) < 0.01 else f"{n} {v:.4f}" for n, v in figures.items())


def _line(sample: TextSample) -> str:
    """A sample on one line, the end of its prompt before it."""
    half = _LONGEST_SAMPLE // 2
    prompt, text = repr(sample.prompt[-half:]), repr(sample.text[:_LONGEST_SAMPLE])
    return f"sample {prompt} -> {text}"
