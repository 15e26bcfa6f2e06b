"""The checkpoints of a folder as a person looks at them, and which step a run is pinned to."""

from dataclasses import dataclass
from pathlib import Path

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import (
    OnError,
    UnknownCheckpointError,
    find_checkpoint,
    is_run_name,
    list_checkpoints,
    log_passed_over,
    newest_runs,
    some,
)
from latentforge.core.errors import shortened
from latentforge.core.manifest import CheckpointError, Manifest
from latentforge.core.pins import HOW_TO_PIN, PINNED, read_pin, remove_pin, write_pin


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One checkpoint of the folder.

    Attributes:
        place: its folder.
        manifest: None where ``problem`` says why it has none that can be read.
        is_pinned: its run is pinned to it.
        is_wanted: what a server serves, if it passes its checks.
        problem: what is wrong with its manifest, or with its run's pin.
    """

    place: Path
    manifest: Manifest | None
    is_pinned: bool
    is_wanted: bool
    problem: str | None

    @property
    def id(self) -> str:
        return f"{self.place.parent.name}/{self.place.name}"


def published_checkpoints(
    root: Path, on_error: OnError = log_passed_over, *, followed: str | None = None
) -> list[PublishedCheckpoint]:
    """Every checkpoint of the folder; the run that published last and newest steps come first.

    Args:
        root: the checkpoints folder; it may not exist.
        on_error: gets the error of everything that is passed over.
        followed: the only run that is served; None is the one that published last.

    Raises:
        OSError: the checkpoints folder itself cannot be read.
    """
    found: list[PublishedCheckpoint] = []
    runs = newest_runs(root, on_error)
    for folder in runs:
        try:
            places = list_checkpoints(folder, on_error)[::-1]
            pin, pin_problem = _pin_of(folder, places)
        except OSError as error:
            on_error(error)
            continue
        for at, place in enumerate(places):
            manifest, problem = _manifest_of(place)
            is_pinned = place.name == pin
            is_followed = folder.name == (followed or runs[0].name)
            is_wanted = is_followed and (is_pinned if pin else at == 0 and pin_problem is None)
            problem = problem or (pin_problem if at == 0 else None)
            found.append(PublishedCheckpoint(place, manifest, is_pinned, is_wanted, problem))
    return found


def pin_checkpoint(root: Path, name: str) -> Path:
    """Pins a run to ``RUN/STEP``; gives the step's folder.

    Raises:
        CheckpointError: there is no such checkpoint, or it is none of this version.
        OSError: the pin cannot be written.
    """
    place = find_checkpoint(root, name)
    read_manifest(place)
    write_pin(place.parent, place.name)
    return place


def unpin_run(root: Path, run: str) -> bool:
    """Takes a run's pin away; says whether there was one.

    Raises:
        UnknownCheckpointError: there is no such run.
        OSError: the pin cannot be removed.
    """
    if not is_run_name(run) or not (root / run).is_dir():
        runs = some([folder.name for folder in newest_runs(root)])
        raise UnknownCheckpointError(
            f"there is no run {shortened(run)!r}; " + (f"there are {runs}" if runs else f"{root} has none")
        )
    return remove_pin(root / run)


def _pin_of(folder: Path, places: list[Path]) -> tuple[str | None, str | None]:
    try:
        pin = read_pin(folder)
    except CheckpointError as error:
        return None, str(error)
    if pin is not None and folder / pin not in places:
        return None, f"{folder / PINNED} names {pin!r}, which is no checkpoint of this run; {HOW_TO_PIN}"
    return pin, None


def _manifest_of(place: Path) -> tuple[Manifest | None, str | None]:
    try:
        return read_manifest(place), None
    except CheckpointError as error:
        return None, str(error)
