"""Experiment trackers: trackio and Weights & Biases behind one sink.

Neither package is installed with the trainer. Keys are read by the packages themselves, from their own variables and
files, and never by us; what is sent is figures, the resolved recipe and samples.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

from latentforge.core.files import write_atomically
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import METRICS
from latentforge.trainer.run.events import Event

TrackerName = Literal["none", "trackio", "wandb"]

# Which run of which tracker a folder's is; forgotten with it, so that a fresh one begins a new run there too.
_TRACKED = "tracker.json"

logger = logging.getLogger(__name__)


class TrackedRun(Protocol):
    """A run at a tracker; both packages' own."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...

    def finish(self) -> None: ...


class Tracker:
    """Sends figures, named ``student/train/ce``, with ``student/step`` beside them.

    Trackers want numbers that never fall, over all of a run, where each stage has steps of its own, and a resumed one
    does some again. So they get a count of all that was ever reported.

    Args:
        run: at the tracker; finished by :meth:`close`.
        reported: how much was, by earlier processes.
    """

    def __init__(self, run: TrackedRun, reported: int) -> None:
        self._run, self._reported, self._failed = run, reported, False

    def take(self, event: Event) -> None:
        pace = event.pace.figures if event.pace else {}
        figures: dict[str, Any] = {f"{event.stage}/{event.kind}/{n}": v for n, v in {**event.figures, **pace}.items()}
        for i, sample in enumerate(event.samples):
            figures[f"{event.stage}/sample/{i}"] = f"{sample.prompt}\n---\n{sample.text}"
        if not figures or self._failed:
            return
        self._reported += 1
        try:
            self._run.log({**figures, f"{event.stage}/step": event.step}, step=self._reported)
        except Exception as error:
            self._failed = True
            logger.warning("the tracker takes no more figures (%s); the run goes on without it", type(error).__name__)

    def close(self) -> None:
        try:
            self._run.finish()
        except Exception as error:
            logger.warning("the tracker could not finish (%s)", type(error).__name__)


@contextlib.contextmanager
def tracked(
    name: TrackerName, project: str, run: str, folder: Path, config: Mapping[str, Any]
) -> Iterator[tuple[Tracker, ...]]:
    """The chosen tracker's sink, or none, closed at the end; the folder's run is resumed there too.

    Args:
        name: which.
        project, run: what the tracker calls them.
        folder: the run's.
        config: the resolved recipe.

    Raises:
        TrainerError: the package is not installed, or cannot begin.
    """
    if name == "none":
        yield ()
        return
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise TrainerError(
            f"TRAINER_TRACKER is {name!r}, which is not installed: pip install 'latentforge-trainer[{name}]', or set "
            "it to none"
        ) from None
    kept = folder / _TRACKED
    earlier = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    begin: Callable[..., tuple[TrackedRun, str]] = {"wandb": _begin_wandb, "trackio": _begin_trackio}[name]
    try:
        # What they print is for people: stdout is the run's.
        with contextlib.redirect_stdout(sys.stderr):
            tracked_run, known_as = begin(package, project, run, folder, dict(config), earlier.get(name))
    except Exception as error:
        raise TrainerError(
            f"{name} cannot begin run {run!r} of project {project!r} ({type(error).__name__}); look at what it says "
            "above, give it what it wants (WANDB_API_KEY, or WANDB_MODE=offline), or set TRAINER_TRACKER to none"
        ) from None
    write_atomically(kept, json.dumps({**earlier, name: known_as}) + "\n")
    metrics = folder / METRICS
    sink = Tracker(tracked_run, len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0)
    try:
        yield (sink,)
    finally:
        with contextlib.redirect_stdout(sys.stderr):
            sink.close()


def _begin_wandb(
    wandb: Any, project: str, run: str, folder: Path, config: dict[str, Any], earlier: str | None
) -> tuple[TrackedRun, str]:
    identity = earlier or uuid.uuid4().hex[:12]
    folder.mkdir(parents=True, exist_ok=True)
    begun = wandb.init(
        project=project,
        name=run,
        id=identity,
        resume="allow",
        config=config,
        dir=os.environ.get("WANDB_DIR", str(folder)),
        # Our lines and our sources stay here.
        settings=wandb.Settings(console="off", save_code=False),
    )
    for stage in ("autoencoder", "student", "token-level"):
        begun.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return begun, identity


def _begin_trackio(
    trackio: Any, project: str, run: str, folder: Path, config: dict[str, Any], earlier: str | None
) -> tuple[TrackedRun, str]:
    # A name is all that tells its runs apart: without one of ours it makes another of it.
    resume = "never" if earlier is None else "allow"
    begun = trackio.init(project=project, name=earlier or run, resume=resume, config=config, embed=False)
    # The run's own finish() leaves it to be finished once more at the process's end, on stdout.
    return SimpleNamespace(log=begun.log, finish=trackio.finish), str(begun.name)
