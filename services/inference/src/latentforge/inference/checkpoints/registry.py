"""Which snapshot is served: follows the checkpoints folder, and never lets go of a good snapshot for a bad one."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from latentforge.core.checkpoints import chosen_checkpoint, list_checkpoints, newest_runs
from latentforge.core.manifest import CheckpointError
from latentforge.core.pins import PINNED
from latentforge.inference.checkpoints.snapshot import DEFAULT_MEMORY, DecodingMemory, Snapshot, load_snapshot

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int, int], ...]
_KEPT_SWAPS = 1000


@dataclass(frozen=True)
class Swap:
    """One change of what is served; ``before`` is None for the first load, ``at`` is ISO 8601 in UTC."""

    before: str | None
    after: str
    at: str


@dataclass(frozen=True)
class Quarantined:
    """A checkpoint that failed its checks; it is not tried again until ``stamp`` changes."""

    checkpoint: str
    reason: str
    at: str
    stamp: Stamp


class Registry:
    """Holds the current snapshot; :meth:`refresh` makes it the one that the folder wants.

    Args:
        root: the checkpoints folder; it may not exist yet.
        run: serves this run only; None follows the run that published last.
        device: where models run.
        fallback: a run's folder that is served while ``root`` has nothing.
        memory: what each snapshot decodes with.
    """

    def __init__(
        self,
        root: Path,
        run: str | None,
        device: torch.device,
        fallback: Path | None = None,
        memory: DecodingMemory = DEFAULT_MEMORY,
    ) -> None:
        self.root = root
        self.run = run
        self.device = device
        self.fallback = fallback
        self.memory = memory
        self.problem: str | None = None
        self.swaps: deque[Swap] = deque(maxlen=_KEPT_SWAPS)
        # Place, stamp and snapshot change together, in one assignment.
        self._served: tuple[Path, Stamp, Snapshot] | None = None
        self._quarantine: dict[Path, Quarantined] = {}
        self._refreshing = threading.Lock()

    @property
    def current(self) -> Snapshot | None:
        """The snapshot to bind a new request to; None until one is loaded."""
        served = self._served
        return served[2] if served else None

    @property
    def quarantined(self) -> list[Quarantined]:
        return list(self._quarantine.values())

    @property
    def waiting_for(self) -> str:
        """What a server without a snapshot waits for, in words."""
        if bad := self.quarantined:
            what = f"a checkpoint that can be served; the last one found cannot: {bad[-1].reason}"
        else:
            what = f"a first checkpoint in {self.root / (self.run or '')}"
        return f"{what}; {self.problem}" if self.problem else what

    def refresh(self) -> None:
        """Looks at the folder once and loads what it wants, while the current snapshot serves on.

        The first checkpoint that passes all checks is taken, from the one that is wanted most down to the one that
        is served; one that fails goes into quarantine. Never raises for anything that is wrong with the folder: what
        it could not do, or passed over, stands in :attr:`problem`.
        """
        with self._refreshing:
            problems: list[str] = []

            def pass_over(error: Exception) -> None:
                problems.append(f"passed over: {error}")

            try:
                self._forget_the_gone(pass_over)
                for place in self._candidates(pass_over):
                    try:
                        if self._is_settled_by(place):
                            break
                    # Not the checkpoint's fault, so it is not quarantined but tried again at the next look.
                    except OSError as error:
                        problems.append(f"{_name(place)} cannot be read now: {error}")
            except (CheckpointError, OSError) as error:
                problems.append(str(error))
            problem = "; ".join(dict.fromkeys(problems)) or None
            if problem and problem != self.problem:
                logger.warning("%s", problem)
            self.problem = problem

    def _is_settled_by(self, place: Path) -> bool:
        """Loads a candidate unless that is done or known to be useless; says whether the search ends with it."""
        served, stamp = self._served, _stamp(place)
        if served and served[:2] == (place, stamp):
            return True
        known = self._quarantine.get(place)
        loaded = not (known and known.stamp == stamp) and self._load(place, stamp)
        return loaded or bool(served and served[0] == place)

    def _load(self, place: Path, stamp: Stamp) -> bool:
        logger.info("loading %s", place)
        try:
            snapshot = load_snapshot(place, self.device, self.memory)
        except CheckpointError as error:
            self._quarantine[place] = Quarantined(_name(place), str(error), _now(), stamp)
            logger.warning("quarantined %s: %s", _name(place), error)
            return False
        before = self.current
        self._quarantine.pop(place, None)
        self.swaps.append(Swap(before.id if before else None, snapshot.id, _now()))
        self._served = (place, stamp, snapshot)
        logger.info("serving %s%s", snapshot.id, f" instead of {before.id}" if before else "")
        return True

    def _candidates(self, pass_over: Callable[[Exception], None]) -> Iterator[Path]:
        """The places to serve from, most wanted first; a pinned run offers its pinned checkpoint only.

        Args:
            pass_over: is told of what cannot be read, or is pinned wrong, and of which nothing is offered.

        Raises:
            CheckpointError: the run that is wanted is pinned to nothing.
            OSError: its folder, or the one of all runs, cannot be read.
        """
        chosen = chosen_checkpoint(self.root, self.run, pass_over)
        if chosen is None:
            yield from reversed(list_checkpoints(self.fallback, pass_over) if self.fallback else [])
            return
        yield from _of_run(chosen, pass_over)
        for run in newest_runs(self.root, pass_over) if self.run is None else ():
            if run == chosen.parent:
                continue
            try:
                wanted = chosen_checkpoint(self.root, run.name, pass_over)
            except (CheckpointError, OSError) as error:
                pass_over(error)
                continue
            if wanted is not None:
                yield from _of_run(wanted, pass_over)

    def _forget_the_gone(self, pass_over: Callable[[Exception], None]) -> None:
        # A new dict, since other threads read the old one.
        kept = {}
        for place, bad in self._quarantine.items():
            try:
                is_gone = not place.is_dir()
            except OSError as error:
                pass_over(error)
                is_gone = False
            if not is_gone:
                kept[place] = bad
        self._quarantine = kept


def _of_run(chosen: Path, pass_over: Callable[[Exception], None]) -> Iterator[Path]:
    yield chosen
    if not (chosen.parent / PINNED).is_file():
        yield from (place for place in reversed(list_checkpoints(chosen.parent, pass_over)) if place != chosen)


def _stamp(place: Path) -> Stamp:
    """What changes when a checkpoint's files do: name, size, mtime and inode of each."""
    stats = [(p.relative_to(place).as_posix(), p.stat()) for p in sorted(place.rglob("*")) if p.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def _name(place: Path) -> str:
    return f"{place.parent.name}/{place.name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
