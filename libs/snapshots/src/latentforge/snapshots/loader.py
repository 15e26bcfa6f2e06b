"""Loads checkpoints one at a time, and does not try again what failed its checks until it changes."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from latentforge.core.checkpoint_files import is_litter
from latentforge.core.manifest import CheckpointError
from latentforge.snapshots.snapshot import DecodingMemory, Snapshot, load_snapshot

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]
# Raises CheckpointError where a snapshot does not fit what it is for.
SnapshotCheck = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Quarantined:
    """A checkpoint that failed its checks; it is not tried again until ``stamp`` changes."""

    checkpoint: str
    reason: str
    at: str
    stamp: Stamp


class QuarantinedError(CheckpointError):
    """A checkpoint that has failed its checks; the message says why."""


@dataclass
class LoadCounts:
    """Since the process began.

    Attributes:
        loads: checkpoints that passed their checks.
        quarantines: those that did not.
        load_seconds: that the loads took together.
    """

    loads: int = 0
    quarantines: int = 0
    load_seconds: float = 0.0


class SnapshotLoader:
    """Loads checkpoints, and keeps a bounded number of those that were asked for beside the one that is served.

    Args:
        device: where models run.
        memory: what each snapshot decodes with.
        num_kept: so many are kept, from 1; the least recently used one goes first; whoever still uses it can go on.
        check: what the user asks of a snapshot beyond what each must pass.
    """

    def __init__(
        self, device: torch.device, memory: DecodingMemory, num_kept: int, check: SnapshotCheck | None = None
    ) -> None:
        self.device, self.memory = device, memory
        self.num_kept = num_kept
        self._check = check
        self.counts = LoadCounts()
        self._quarantine: dict[Path, Quarantined] = {}
        self._kept: OrderedDict[Path, tuple[Stamp, Snapshot]] = OrderedDict()
        # One load at a time bounds memory and the processor time that requests lose; whoever asks for what is being
        # loaded finds it afterwards.
        self._loading = threading.Lock()
        self._changing = threading.Lock()

    @property
    def quarantined(self) -> list[Quarantined]:
        return list(self._quarantine.values())

    @property
    def kept(self) -> list[Snapshot]:
        """Those that are kept, most recently used last."""
        with self._changing:
            return [snapshot for _, snapshot in self._kept.values()]

    def load(self, place: Path, stamp: Stamp) -> Snapshot:
        """The checkpoint of a folder, to be served; one that is kept is handed out, and kept no longer.

        Args:
            place: its folder.
            stamp: of the folder, taken before.

        Raises:
            QuarantinedError: it has failed its checks, now or before.
            OSError: the folder cannot be read now.
        """
        with self._loading:
            snapshot = self._found(place, stamp) or self._load(place, stamp)
        with self._changing:
            self._kept.pop(place, None)
        return snapshot

    def load_and_keep(self, place: Path) -> Snapshot:
        """As :meth:`load`, for what is to be asked for again."""
        stamp = stamp_of(place)
        if (found := self._found(place, stamp)) is not None:
            return found
        with self._loading:
            if (found := self._found(place, stamp)) is not None:
                return found
            self._refuse_quarantined(place, stamp)
            # Before the load, so that there are never more of them in memory than are kept.
            with self._changing:
                self._kept.pop(place, None)
                while len(self._kept) >= self.num_kept:
                    self._kept.popitem(last=False)
            snapshot = self._load(place, stamp)
            with self._changing:
                self._kept[place] = stamp, snapshot
            return snapshot

    def is_quarantined(self, place: Path, stamp: Stamp) -> bool:
        """Whether a folder has failed its checks and not changed since."""
        known = self._quarantine.get(place)
        return known is not None and known.stamp == stamp

    def quarantine(self, place: Path, stamp: Stamp, reason: str) -> None:
        """Keeps a checkpoint from being loaded until its files change, for a reason that only its use showed."""
        with self._changing:
            self._quarantine = self._quarantine | {place: Quarantined(name_of(place), reason, now(), stamp)}
            self._kept.pop(place, None)
        self.counts.quarantines += 1
        logger.warning("quarantined %s: %s", name_of(place), reason)

    def forget_the_gone(self, pass_over: Callable[[Exception], None]) -> None:
        """Forgets what is quarantined or kept of folders that are not there any more.

        Args:
            pass_over: is told of folders that cannot be looked at, which may be there.
        """
        with self._changing:
            gone = {place for place in (*self._quarantine, *self._kept) if not _is_there(place, pass_over)}
            # A new dict, since other threads read the old one.
            self._quarantine = {place: bad for place, bad in self._quarantine.items() if place not in gone}
            for place in gone & self._kept.keys():
                del self._kept[place]

    def _found(self, place: Path, stamp: Stamp) -> Snapshot | None:
        with self._changing:
            kept = self._kept.get(place)
            if kept is None or kept[0] != stamp:
                return None
            self._kept.move_to_end(place)
            return kept[1]

    def _refuse_quarantined(self, place: Path, stamp: Stamp) -> None:
        known = self._quarantine.get(place)
        if known is not None and known.stamp == stamp:
            raise QuarantinedError(known.reason)

    def _load(self, place: Path, stamp: Stamp) -> Snapshot:
        self._refuse_quarantined(place, stamp)
        logger.info("loading %s", place)
        start = time.monotonic()
        try:
            snapshot = load_snapshot(place, self.device, self.memory)
            if self._check is not None:
                self._check(snapshot)
        except CheckpointError as error:
            self.quarantine(place, stamp, str(error))
            raise QuarantinedError(str(error)) from error
        with self._changing:
            self._quarantine = {known: bad for known, bad in self._quarantine.items() if known != place}
        self.counts.loads += 1
        self.counts.load_seconds += time.monotonic() - start
        return snapshot


def stamp_of(place: Path) -> Stamp:
    """What changes when a checkpoint's files do: name, size, mtime and inode of each.

    Raises:
        OSError: the folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, names in os.walk(place, onerror=fail):
        folders[:] = [name for name in folders if not is_litter(name)]
        for path in (Path(folder, name) for name in names if not is_litter(name)):
            stat = path.lstat()
            found.append((path.relative_to(place).as_posix(), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(sorted(found))


def name_of(place: Path) -> str:
    """What answers would call a folder's checkpoint."""
    return f"{place.parent.name}/{place.name}"


def now() -> str:
    """ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_there(place: Path, pass_over: Callable[[Exception], None]) -> bool:
    try:
        return place.is_dir()
    except OSError as error:
        pass_over(error)
        return True
