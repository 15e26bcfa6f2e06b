"""Checkpoints on the shared volume: which there are, which run is the newest, and which is to be served.

A checkpoint is ``<root>/<run>/step-00001200/`` with autoencoder/, student/, tokenizer/ and, written last,
manifest.json. Symbolic links below the root are not followed.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from latentforge.core.errors import shortened
from latentforge.core.manifest import LONGEST_MANIFEST, MANIFEST, STEP_FOLDER, CheckpointError, parse_time, step_folder
from latentforge.core.pins import HOW_TO_PIN, PINNED, read_pin

# Clocks of machines that share a volume are at most so far apart, in seconds, where they are set at all.
MOST_SKEW = 300
# Bytes of a folder's name that file systems take.
_LONGEST_NAME = 255

logger = logging.getLogger(__name__)

OnError = Callable[[Exception], object]


class UnknownCheckpointError(CheckpointError):
    """Nothing is published under a name; the message says what is."""


def log_passed_over(error: Exception) -> None:
    """What is done about things that are passed over, where nobody asks for more."""
    logger.warning("passed over: %s", error)


def list_checkpoints(run_folder: Path, on_error: OnError = log_passed_over) -> list[Path]:
    """The run's checkpoints that have a manifest, by step as a number, oldest first.

    Args:
        run_folder: ``<root>/<run>``; it may not exist.
        on_error: gets the error of everything that looks like a checkpoint, but is passed over: it cannot be looked
            at, is a link, or is called otherwise than its step.

    Raises:
        OSError: the run's folder itself cannot be read.
    """
    found = []
    for place in run_folder.iterdir() if run_folder.is_dir() else ():
        match = STEP_FOLDER.fullmatch(place.name)
        try:
            if not match or not (place / MANIFEST).is_file():
                continue
        except OSError as error:
            on_error(error)
            continue
        step = int(match[1])
        if place.is_symlink():
            on_error(CheckpointError(f"{place} is a symbolic link, which is not followed; put the folder itself there"))
        elif place.name != step_folder(step):
            on_error(CheckpointError(f"{place} is not called {step_folder(step)}, as step {step} is; rename it"))
        else:
            found.append((step, place))
    return [place for _, place in sorted(found)]


def newest_runs(root: Path, on_error: OnError = log_passed_over) -> list[Path]:
    """Folders of the runs that have published, the one that published last first.

    The time is what the manifest of a run's last step says. One that is more than ``MOST_SKEW`` seconds ahead of this
    machine's clock counts as published when its file was written, and never later than now.

    Args:
        root: the checkpoints folder; it may not exist.
        on_error: gets the error of every folder that is passed over, because it cannot be read, as lost+found, or is a
            link; and of every time that is not believed.

    Raises:
        OSError: the checkpoints folder itself cannot be read.
    """
    published = []
    for folder in root.iterdir() if root.is_dir() else ():
        try:
            places = list_checkpoints(folder, on_error)
            if places and folder.is_symlink():
                on_error(CheckpointError(f"{folder} is a symbolic link, which is not followed; put the folder there"))
            elif places and not folder.name.isprintable():
                on_error(CheckpointError(f"{folder.name!r} in {root} has characters that are not printable; rename it"))
            elif places:
                published.append((_published_at(places[-1], on_error), folder))
        except OSError as error:
            on_error(error)
    # Of two that are equally new the first by name.
    return [folder for _, folder in sorted(published, key=lambda entry: (-entry[0], entry[1].name))]


def chosen_checkpoint(root: Path, run: str | None = None, on_error: OnError = log_passed_over) -> Path | None:
    """The checkpoint to serve: the pinned one, else the newest of the run.

    Args:
        root: the checkpoints folder.
        run: a run's name; None takes the run that published last.
        on_error: gets the error of everything that is passed over.

    Returns:
        A checkpoint's folder, or None when nothing is published yet.

    Raises:
        CheckpointError: the run is pinned to a step that is not there, or is a link.
        OSError: the checkpoints folder, or that of ``run``, cannot be read.
    """
    if run is None:
        runs = newest_runs(root, on_error)
        if not runs:
            return None
        run = runs[0].name
    folder = root / run
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a symbolic link, which is not followed; put the folder itself there")
    name = read_pin(folder)
    places = list_checkpoints(folder, on_error)
    if name is None:
        return places[-1] if places else None
    if (pinned := folder / name) not in places:
        raise CheckpointError(f"{folder / PINNED} names {name!r}, which is no checkpoint of this run; {HOW_TO_PIN}")
    return pinned


def find_checkpoint(root: Path, name: str) -> Path:
    """The folder of ``RUN/STEP``, where STEP is a folder's name or a number.

    Raises:
        UnknownCheckpointError: there is none; the message says what there is.
        OSError: the run's folder cannot be read.
    """
    run, _, step = name.rpartition("/")
    step = step_folder(int(step)) if step.isascii() and step.isdecimal() else step
    is_run = is_run_name(run) and not (root / run).is_symlink()
    places = {place.name: place for place in list_checkpoints(root / run)} if is_run else {}
    if step in places:
        return places[step]
    if places:
        raise UnknownCheckpointError(f"run {run!r} has no {shortened(step)!r}; it has {some(list(places)[::-1])}")
    runs = some([f"{folder.name}/{list_checkpoints(folder)[-1].name}" for folder in newest_runs(root)])
    raise UnknownCheckpointError(
        f"no checkpoint is published as {shortened(name)!r}; {f'published are {runs}' if runs else f'{root} has none'}"
    )


def _published_at(place: Path, on_error: OnError) -> float:
    """When a checkpoint was published, in seconds since the epoch; of any format version."""
    path, now = place / MANIFEST, time.time()
    written = min(path.stat().st_mtime, now)
    try:
        with path.open("rb") as file:
            said = parse_time(json.loads(file.read(LONGEST_MANIFEST))["created"]).timestamp()
    # What is wrong with it is said when it is loaded.
    except (ValueError, KeyError, TypeError, RecursionError):
        return written
    if said > now + MOST_SKEW:
        on_error(
            CheckpointError(
                f"{path} says that it was created at a time that is yet to come, so the time of its file counts; set "
                "the clocks of the machines that share the volume"
            )
        )
        return written
    return min(said, now)


def is_run_name(run: str) -> bool:
    """Whether a run may be called so: the name of a folder, of printable characters."""
    return run.isprintable() and "/" not in run and run not in ("", ".", "..") and len(run.encode()) <= _LONGEST_NAME


def some(names: list[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
