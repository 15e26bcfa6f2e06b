"""The newest state of a run: in memory for the status server, and in ``runs/<run>/status.json`` for everybody else."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import STATUS, LiveStatus, read_progress
from latentforge.trainer.run.curve import BoundedCurve
from latentforge.trainer.run.events import Event
from latentforge.trainer.run.status import Status

_WRITE_EVERY_SECONDS = 5.0
# What is waited for is written by the thread that waits.
_writing = threading.Lock()

logger = logging.getLogger(__name__)


class Live:
    """Keeps a Status up to date, its curves included, which begin with what earlier processes wrote.

    Args:
        folder: the run's.
        status: what is kept up to date.
        stage: which stage this is.
        first: steps that earlier processes made of it.
    """

    def __init__(self, folder: Path, status: Status, stage: str, first: int) -> None:
        self._folder, self._status = folder, status
        self._curves = {"train": BoundedCurve(), "held_out": BoundedCurve()}
        self._written = 0.0
        if first:
            self._resume_curves(stage, first)

    def take(self, event: Event) -> None:
        status = self._status
        status.step, status.of = event.step, event.of
        if event.kind == "started":
            status.stage, status.losses, status.held_out_figures = event.stage, {}, {}
            status.eta, status.run_eta, status.tokens_per_s = None, None, None
        elif event.kind == "train":
            assert event.pace is not None
            status.losses = _finite(event.figures)
            status.eta, status.run_eta = event.pace.eta, event.pace.run_eta
            status.tokens_per_s = event.pace.recent
            status.tokens[event.stage] = status.tokens.get(event.stage, 0) + event.pace.tokens
            self._curves["train"].add(event.step, {**event.figures, "tokens_per_s": event.pace.recent})
        elif event.kind == "held_out":
            # Some figures are only measured where a step is published, and hold until the next one is.
            others = {name: v for name, v in status.held_out_figures.items() if name not in event.figures}
            status.held_out_figures = others | _finite(event.figures)
            self._curves["held_out"].add(event.step, event.figures)
        elif event.kind == "published":
            status.checkpoints_published += 1
            status.last_published = event.place
        status.train, status.held_out = self._curves["train"].points, self._curves["held_out"].points
        if event.kind != "train" or time.monotonic() - self._written >= _WRITE_EVERY_SECONDS:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        _write(self._folder, self._status)

    def _resume_curves(self, stage: str, first: int) -> None:
        """Takes up the curves that an earlier process wrote, where they can be read."""
        with suppress(TrainerError):
            # Steps that were done again are there twice; the later line is the one that counts.
            lines = {(p.kind, p.step): p for p in read_progress(self._folder) if p.stage == stage}
            for (kind, step), point in sorted(lines.items()):
                if step <= first:
                    figures = dict(point.figures)
                    if (speed := figures.pop("tok_per_s", None)) is not None:
                        figures["tokens_per_s"] = speed
                    figures.pop("teacher_wait_seconds", None)
                    self._curves[kind].add(step, figures)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """JSON has no word for the others."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def write_status(folder: Path, status: Status) -> None:
    """Writes ``status.json`` of a run; a disk that takes nothing is no reason to end the run."""
    try:
        _write(folder, status)
    except OSError as error:
        logger.warning("%s cannot be written (%s)", folder / STATUS, error.strerror)


def _write(folder: Path, status: Status) -> None:
    # Read inside: what another thread read before must not be written after a run's last words.
    with _writing:
        said = {name: getattr(status, name) for name in LiveStatus.model_fields if hasattr(status, name)}
        live = LiveStatus(host=socket.gethostname(), pid=os.getpid(), time=round(time.time(), 3), **said)
        live.write(folder / STATUS)
