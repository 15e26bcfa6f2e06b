"""A stage's progress: the loop says what it did, whoever watches is told."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from latentforge.core.manifest import TextSample
from latentforge.trainer.results import METRICS
from latentforge.trainer.run.events import Event, EventKind, Sink, StagePace
from latentforge.trainer.run.sinks.board import Board
from latentforge.trainer.run.sinks.live import Live
from latentforge.trainer.run.sinks.metrics_file import MetricsFile
from latentforge.trainer.run.sinks.terminal import Terminal
from latentforge.trainer.run.status import Status

_STEPS_OF_SPEED = 20

# Of steps that this process has made of a stage, seconds of one of them, and seconds left in the stage: the seconds of
# all stages after it, None while they are unknown.
Later = Callable[[int, float, float], float | None]


class StageProgress:
    """One stage's progress; use as a context manager.

    Everything that is said of it goes, as an :class:`Event`, to the terminal, ``<run>/metrics.jsonl``,
    ``<run>/tensorboard/<stage>``, the status, and what else is given.

    Args:
        folder: the run's.
        stage: its name.
        total: steps.
        status: kept up to date.
        first: steps that an earlier process made.
        later: says how long what comes after the stage will take; without it nothing does.
        console: where bars and lines go.
        more: sinks besides, which stay open.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        total: int,
        status: Status,
        *,
        first: int = 0,
        later: Later | None = None,
        console: Console | None = None,
        more: Sequence[Sink] = (),
    ) -> None:
        self._stage, self._first, self._total, self._status = stage, first, total, status
        self._later = later
        self._terminal = Terminal(console or Console(stderr=True), stage, total, first)
        live = Live(folder, status, stage, first)
        self._own: list[Sink] = [
            self._terminal,
            MetricsFile(folder / METRICS),
            Board(folder / "tensorboard" / stage, first),
            live,
        ]
        self._sinks = [*self._own, *more]
        self._warned: set[Sink] = set()
        self._started = time.monotonic()
        self._amount = 0
        # When each of the newest steps was done, and how many tokens there were by then.
        self._done = deque([(self._started, 0)], maxlen=_STEPS_OF_SPEED + 1)
        self._waited = status.teacher_wait_seconds or 0.0
        self._tell("started", first)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._own:
            self._guarded(sink, sink.close)

    def step(self, step: int, values: Mapping[str, float], amount: int, note: str = "") -> None:
        """Reports that ``step`` steps are done.

        Args:
            step: how many steps are done.
            values: figures of the newest one.
            amount: tokens of the newest one.
            note: added to bar and line, like the share of cache hits.
        """
        self._amount += amount
        waited = self._status.teacher_wait_seconds
        now = time.monotonic()
        elapsed = max(now - self._started, 1e-6)
        self._done.append((now, self._amount))
        made = max(step - self._first, 1)
        eta = elapsed / made * (self._total - step)
        later = 0.0 if self._later is None else self._later(made, elapsed / made, eta)
        (then, amount_then), (_, amount_now) = self._done[0], self._done[-1]
        pace = StagePace(
            tokens=amount,
            mean=self._amount / elapsed,
            recent=(amount_now - amount_then) / max(now - then, 1e-6),
            eta=eta,
            run_eta=None if later is None else eta + later,
            teacher_wait=None if waited is None else round(waited - self._waited, 3),
        )
        self._waited = waited or 0.0
        self._tell("train", step, figures=values, pace=pace, note=note)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Reports figures on held-out data."""
        self._tell("held_out", step, figures=values)

    def published(self, step: int, place: str, samples: Sequence[TextSample] = ()) -> None:
        """Reports a checkpoint, and what its student writes."""
        self._tell("published", step, place=place, samples=tuple(samples))

    def say(self, line: str) -> None:
        """Writes a line that is for the terminal alone."""
        self._terminal.say(line)

    def teacher_waited(self, seconds: float) -> None:
        """Reports for how long the teacher has been waited for since the process began."""
        self._status.teacher_wait_seconds = seconds

    def _tell(self, kind: EventKind, step: int, **about: Any) -> None:
        event = Event(kind, self._stage, step, self._total, **about)
        for sink in self._sinks:
            self._guarded(sink, partial(sink.take, event))

    def _guarded(self, sink: Sink, write: Callable[[], None]) -> None:
        """Has a sink write; a disk that takes nothing for an hour must not cost a run of weeks."""
        try:
            write()
        except OSError as error:
            if sink not in self._warned:
                self._warned.add(sink)
                self.say(f"warning: {type(sink).__name__} cannot be written ({error}); it goes on without")
