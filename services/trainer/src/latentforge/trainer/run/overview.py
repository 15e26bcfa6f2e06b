"""What a run's files say of it, for whoever asks from outside: of one that runs, has ended, or was killed."""

import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import is_run_name, list_checkpoints, some
from latentforge.core.manifest import STEP_FOLDER, CheckpointError, parse_time
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import EVALUATION, METRICS, STATUS, SUMMARY, LiveStatus, read_progress
from latentforge.trainer.run.lock import Holder, holder_of
from latentforge.trainer.run.status import STARTING

State = Literal["running", "finished", "failed", "stopped", "killed", "unknown"]
# As run.interrupt.Interrupted leaves it in the status.
_STOPPED = "Interrupted"


class Place(BaseModel):
    """Something that a run has put somewhere.

    Attributes:
        name: a stage and step, or a checkpoint.
        age: seconds since.
    """

    name: str
    age: float


class Overview(BaseModel):
    """A run from outside.

    Attributes:
        run: its name.
        state: running (a process has the run's lock), finished, failed (with ``error``), stopped (on request), killed
            (its process is gone without a word), unknown (it has written no status).
        stage, step, of: where it is; ``of`` is None where nothing says.
        eta, run_eta: seconds left in the stage, and in the whole run, while it runs.
        losses, held_out: the newest figures by name.
        tokens_per_s, teacher_wait_seconds, waiting_for, counts, error: see :class:`LiveStatus`.
        host, pid: of the process that has the lock, else of the one that wrote last.
        age: seconds since it was seen, or wrote.
        last_save: the newest state that it can be resumed from.
        last_publish: the newest checkpoint.
        checkpoints: how many there are.
        run_bytes, checkpoint_bytes: on the disk; a file with two names counts once.
    """

    run: str
    state: State
    stage: str
    step: int
    of: int | None = None
    eta: float | None = None
    run_eta: float | None = None
    losses: dict[str, float] = {}
    held_out: dict[str, float] = {}
    tokens_per_s: float | None = None
    teacher_wait_seconds: float | None = None
    waiting_for: str | None = None
    counts: dict[str, int] = {}
    error: str | None = None
    host: str | None = None
    pid: int | None = None
    age: float | None = None
    last_save: Place | None = None
    last_publish: Place | None = None
    checkpoints: int = 0
    run_bytes: int = 0
    checkpoint_bytes: int = 0


def run_folder(runs: Path, name: str) -> Path:
    """A run's folder.

    Raises:
        TrainerError: there is none of that name; names those that are.
    """
    folder = runs / name
    if not is_run_name(name) or not folder.is_dir():
        known = sorted((p for p in runs.iterdir() if p.is_dir()), key=_changed) if runs.is_dir() else []
        names = some([p.name for p in reversed(known)])
        raise TrainerError(f"there is no run {name!r}; {f'{runs} has {names}' if names else f'{runs} has none'}")
    return folder


def overview_of(runs: Path, checkpoints: Path, name: str) -> Overview:
    """Looks at a run.

    Args:
        runs, checkpoints: the folders of all runs.
        name: the run's.

    Raises:
        TrainerError: there is no such run.
    """
    folder, published, now = run_folder(runs, name), checkpoints / name, time.time()
    places = list_checkpoints(published)
    return Overview(
        run=name,
        **_said(folder, now),
        last_save=_last_save(folder, now),
        last_publish=_last_publish(places, now),
        checkpoints=len(places),
        run_bytes=bytes_on_disk(folder),
        checkpoint_bytes=bytes_on_disk(published),
    )


def _said(folder: Path, now: float) -> dict[str, Any]:
    """What the run's processes said last, and which one has it now."""
    holder = holder_of(folder)
    said = _from_status(folder, now, holder)
    if holder is None:
        return said
    return said | {"host": holder.host, "pid": holder.pid, "age": holder.age}


def _from_status(folder: Path, now: float, holder: Holder | None) -> dict[str, Any]:
    try:
        live = LiveStatus.read(folder / STATUS)
    except TrainerError:
        return _from_metrics(folder, now, holder)
    said = live.model_dump(exclude={"format_version", "run", "time", "done", "held_out_figures", "tokens"})
    said |= {"held_out": live.held_out_figures, "age": max(0.0, now - live.time)}
    if holder is not None and live.time < holder.since:
        # An earlier process's last words; this one has had none yet.
        nothing = dict.fromkeys(("eta", "run_eta", "error", "waiting_for"))
        return said | {"state": "running", "stage": STARTING} | nothing
    return said | {
        "state": _state(folder, live, holder),
        "eta": None if holder is None else live.eta,
        "run_eta": None if holder is None else live.run_eta,
        "error": None if live.error == _STOPPED else live.error,
    }


def _from_metrics(folder: Path, now: float, holder: Holder | None) -> dict[str, Any]:
    """The same of a run that wrote no status: one that has just begun, or of an earlier version."""
    points = read_progress(folder) if (folder / METRICS).is_file() else []
    state = "running" if holder else "finished" if (folder / SUMMARY).is_file() else "unknown"
    if not points:
        return {"state": state, "stage": "data", "step": 0}
    last = points[-1]
    newest = {p.kind: p.figures for p in points if p.stage == last.stage}
    losses = dict(newest.get("train", {}))
    return {
        "state": state,
        "stage": last.stage,
        "step": last.step,
        "tokens_per_s": losses.pop("tok_per_s", None),
        "losses": losses,
        "held_out": newest.get("held_out", {}),
        "age": max(0.0, now - last.time),
    }


def _state(folder: Path, live: LiveStatus, holder: Holder | None) -> State:
    if live.done:
        return "finished"
    if live.error is not None:
        return "stopped" if live.error == _STOPPED else "failed"
    if holder is not None:
        return "running"
    # What one command trains alone leaves its result and no last word.
    result = folder / "autoencoder" / EVALUATION if live.stage == "autoencoder" else folder / f"{live.stage}.json"
    return "finished" if live.step == live.of and result.is_file() else "killed"


def _last_save(folder: Path, now: float) -> Place | None:
    places = [p for p in folder.glob("state/*/step-*") if STEP_FOLDER.fullmatch(p.name)]
    if not places:
        return None
    newest = max(places, key=lambda p: (_changed(p), p.name))
    return Place(name=f"{newest.parent.name}/{newest.name}", age=max(0.0, now - _changed(newest)))


def _last_publish(places: list[Path], now: float) -> Place | None:
    if not places:
        return None
    place = places[-1]
    try:
        created = parse_time(read_manifest(place).created)
    except (CheckpointError, OSError):
        created = datetime.fromtimestamp(_changed(place), UTC)
    return Place(name=f"{place.parent.name}/{place.name}", age=max(0.0, now - created.timestamp()))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        # Gone meanwhile: a run that lives drops old states.
        return 0.0


def bytes_on_disk(folder: Path) -> int:
    """What a folder takes, 0 where there is none; a file with two names counts once."""
    files = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in _stats(folder.rglob("*") if folder.is_dir() else ())}
    return sum(files.values())


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        try:
            yield path.lstat()
        except OSError:
            continue
