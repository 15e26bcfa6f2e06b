"""What people and machines see of a run: bars or lines, metrics.jsonl, TensorBoard, the status."""

import re
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import METRICS, read_progress
from latentforge.trainer.run.curve import BoundedCurve
from latentforge.trainer.run.metrics import MetricsWriter
from latentforge.trainer.run.status import Status

LINE_EVERY_SECONDS = 10.0
_STEPS_OF_SPEED = 20
_DETAIL = re.compile(r"_(k\d+|low)$")


class StageProgress:
    """One stage's progress; use as a context manager.

    A terminal gets a bar, anything else a line now and then. Metrics go to ``<run>/metrics.jsonl``, each with its
    stage and step, and to ``<run>/tensorboard/<stage>``. After a kill, steps since the last save are written twice.

    Args:
        folder: the run's.
        stage: its name.
        total: steps.
        first: steps that an earlier process made.
        status: kept up to date.
        console: where bars and lines go.
        unit: what is counted for the speed.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        total: int,
        status: Status,
        *,
        first: int = 0,
        console: Console | None = None,
        unit: str = "tok",
    ) -> None:
        self._console = console or Console(stderr=True)
        self._stage, self._unit = stage, unit
        self._status = status
        self._first, self._total = first, total
        self._curves = {"train": BoundedCurve(), "held_out": BoundedCurve()}
        if first:
            self._resume_curves(folder)
        self._metrics = MetricsWriter(folder / METRICS)
        self._board = SummaryWriter(folder / "tensorboard" / stage, purge_step=first)
        columns = (
            TextColumn(stage),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console) if self._console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=first) if self._bar else None
        self._started = self._last_line = time.monotonic()
        self._amount = 0
        # When each of the newest steps was done, and how many tokens there were by then.
        self._done = deque([(self._started, 0)], maxlen=_STEPS_OF_SPEED + 1)
        status.stage, status.step, status.of, status.losses, status.eta = stage, first, total, {}, None
        status.tokens_per_s = None
        status.train, status.held_out = self._curves["train"].points, self._curves["held_out"].points

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._metrics.close()
        self._board.close()

    def step(self, step: int, values: Mapping[str, float], amount: int, note: str = "") -> None:
        """Reports that ``step`` steps are done.

        Args:
            step: how many steps are done.
            values: figures of the newest one.
            amount: tokens of the newest one.
            note: added to bar and line, like the share of cache hits.
        """
        self._amount += amount
        now = time.monotonic()
        elapsed = max(now - self._started, 1e-6)
        speed = self._amount / elapsed
        eta = elapsed / max(step - self._first, 1) * (self._total - step)
        self._status.step, self._status.eta = step, eta
        self._status.losses = dict(values)
        self._done.append((now, self._amount))
        (then, amount_then), (_, amount_now) = self._done[0], self._done[-1]
        recent = (amount_now - amount_then) / max(now - then, 1e-6)
        self._status.tokens_per_s = recent
        self._curves["train"].add(step, {**values, "tokens_per_s": recent})
        self._status.train = self._curves["train"].points
        self._record(step, "train", {**values, f"{self._unit}_per_s": speed})
        described = "  ".join(
            [*(_figure(n, v) for n, v in values.items()), f"{speed:,.0f} {self._unit}/s", *([note] if note else [])]
        )
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, description=described)
        elif now - self._last_line >= LINE_EVERY_SECONDS or step == self._total or step == self._first + 1:
            self._last_line = now
            self._console.print(
                f"{self._stage} {step}/{self._total}  {described}  eta {eta:.0f} s", soft_wrap=True, highlight=False
            )

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Reports figures on held-out data."""
        self._record(step, "held_out", values)
        self._curves["held_out"].add(step, values)
        self._status.held_out = self._curves["held_out"].points
        # A line has no room for each place in a chunk, and for both bounds; the other readers have them.
        described = "  ".join(_figure(n, v) for n, v in values.items() if not _DETAIL.search(n))
        self.say(f"{self._stage} {step}/{self._total}  held-out: {described}")

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def teacher_waited(self, seconds: float) -> None:
        """Reports for how long the teacher has been waited for since the process began."""
        self._status.teacher_wait_seconds = seconds

    def _resume_curves(self, folder: Path) -> None:
        """Takes up the curves that an earlier process wrote, where they can be read."""
        with suppress(TrainerError):
            # Steps that were done again are there twice; the later line is the one that counts.
            lines = {(p.kind, p.step): p for p in read_progress(folder) if p.stage == self._stage}
            for (kind, step), point in sorted(lines.items()):
                if step <= self._first:
                    figures = dict(point.figures)
                    if (speed := figures.pop(f"{self._unit}_per_s", None)) is not None:
                        figures["tokens_per_s"] = speed
                    self._curves[kind].add(step, figures)

    def _record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        self._metrics.write(stage=self._stage, step=step, kind=kind, time=round(time.time(), 3), **values)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def _figure(name: str, value: float) -> str:
    return f"{name} {value:.3g}" if abs(value) < 0.01 else f"{name} {value:.4f}"
