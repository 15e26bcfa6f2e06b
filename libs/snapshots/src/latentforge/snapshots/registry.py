"""Which snapshot is served: follows the checkpoints folder, and never lets go of a good snapshot for a bad one."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from latentforge.core.checkpoints import (
    UnknownCheckpointError,
    chosen_checkpoint,
    find_checkpoint,
    is_run_name,
    list_checkpoints,
    newest_runs,
)
from latentforge.core.leases import take_lease
from latentforge.core.manifest import CheckpointError
from latentforge.core.pins import is_pinned
from latentforge.snapshots.loader import (
    LoadCounts,
    Quarantined,
    QuarantinedError,
    SnapshotCheck,
    SnapshotLoader,
    Stamp,
    name_of,
    now,
    stamp_of,
)
from latentforge.snapshots.snapshot import DEFAULT_MEMORY, DecodingMemory, Snapshot

logger = logging.getLogger(__name__)

# What clients may call whichever checkpoint is served.
SERVED_NAME = "latentforge"
_KEPT_SWAPS = 1000


@dataclass(frozen=True)
class Swap:
    """One change of what is served; ``before`` is None for the first load, ``at`` is ISO 8601 in UTC."""

    before: str | None
    after: str
    at: str


class NothingServedError(RuntimeError):
    """No checkpoint is loaded yet; the message says what is waited for."""


class Registry:
    """Holds the current snapshot; :meth:`refresh` makes it the one that the folder wants.

    Args:
        root: the checkpoints folder; it may not exist yet.
        run: serves this run only; None follows the run that published last.
        device: where models run.
        fallback: a run's folder that is served until ``root`` has something that can be.
        memory: what each snapshot decodes with.
        num_extra: checkpoints that are kept beside the one that is served, for :meth:`snapshot_for`.
        extra_setting: what the user raises where none may be kept.
        check: raises CheckpointError for a snapshot that passed all checks and still must not be served.

    Attributes:
        problem: what could not be done at the last look, or was passed over; None where nothing was.
        swaps: the last changes of what is served.
        num_swaps: how many there were since the process began, the first load among them.
        way_back: a snapshot that was served and may be again (:meth:`go_back`); its checkpoint is kept on lease.
    """

    def __init__(
        self,
        root: Path,
        run: str | None,
        device: torch.device,
        fallback: Path | None = None,
        memory: DecodingMemory = DEFAULT_MEMORY,
        *,
        num_extra: int = 1,
        extra_setting: str = "num_extra",
        check: SnapshotCheck | None = None,
    ) -> None:
        self.root = root
        self.run = run
        self.device = device
        self.fallback = fallback
        self.problem: str | None = None
        self.swaps: deque[Swap] = deque(maxlen=_KEPT_SWAPS)
        self.num_swaps = 0
        self._extra_setting = extra_setting
        self.way_back: Snapshot | None = None
        self._loader = SnapshotLoader(device, memory, num_extra, check)
        # Place, stamp and snapshot change together, in one assignment.
        self._served: tuple[Path, Stamp, Snapshot] | None = None
        self._stamps: WeakKeyDictionary[Snapshot, Stamp] = WeakKeyDictionary()
        self._refreshing = threading.Lock()
        self._swapping = threading.Lock()

    @property
    def current(self) -> Snapshot | None:
        """The snapshot to bind a new request to; None until one is loaded."""
        served = self._served
        return served[2] if served else None

    @property
    def loaded(self) -> list[Snapshot]:
        """The current snapshot and those that are kept beside it."""
        current = self.current
        return [*([current] if current else []), *(s for s in self._loader.kept if s is not current)]

    @property
    def quarantined(self) -> list[Quarantined]:
        return self._loader.quarantined

    @property
    def counts(self) -> LoadCounts:
        return self._loader.counts

    @property
    def waiting_for(self) -> str:
        """What a server without a snapshot waits for, in words."""
        if bad := self.quarantined:
            what = f"a checkpoint that can be served; the last one found cannot: {bad[-1].reason}"
        else:
            what = f"a first checkpoint in {self.root / (self.run or '')}"
        return f"{what}; {self.problem}" if self.problem else what

    def snapshot_for(self, name: str | None) -> Snapshot:
        """The snapshot that a request names; loads it beside the one that is served, where it is another.

        Reads files and may take seconds: not for the event loop.

        Args:
            name: a checkpoint's id, a run's name, which stands for what would be served of it, or, for what is served,
                its own name, "latentforge" or None.

        Raises:
            NothingServedError: what is served is asked for, and nothing is.
            UnknownCheckpointError: nothing is published under the name; the message says what is.
            QuarantinedError: it has failed its checks.
            CheckpointError: its run is pinned to nothing.
            OSError: it cannot be read now.
        """
        current = self.current
        if name is None or name == SERVED_NAME:
            if current is None:
                raise NothingServedError(f"nothing is loaded yet: the server waits for {self.waiting_for}")
            return current
        if current is not None and name == current.id:
            return current
        refused: QuarantinedError | None = None
        for place in self._places_named(name):
            try:
                return self._beside(place)
            # Of a run the next that can be served is taken, as where it is followed.
            except QuarantinedError as error:
                refused = refused or error
        assert refused is not None
        raise refused

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
                self._loader.forget_the_gone(pass_over)
                for snapshot in (*self.loaded, *([self.way_back] if self.way_back else [])):
                    self._hold(snapshot.place)
                for place in self._candidates(pass_over):
                    try:
                        if self._is_settled_by(place):
                            break
                    # Not the checkpoint's fault, so it is not quarantined but tried again at the next look.
                    except OSError as error:
                        problems.append(f"{name_of(place)} cannot be read now: {error}")
            except (CheckpointError, OSError) as error:
                problems.append(str(error))
            problem = "; ".join(dict.fromkeys(problems)) or None
            if problem and problem != self.problem:
                logger.warning("%s", problem)
            self.problem = problem

    def go_back(self, bad: Snapshot, good: Snapshot, reason: str) -> None:
        """Serves ``good`` again, which was served before, instead of ``bad``, which is quarantined.

        What is neither is served on: a newer one has been taken in the meantime. Reads no file and does not wait for a
        look at the folder that is under way.

        Args:
            bad: a snapshot that was served, or is.
            good: one that was served before.
            reason: what the use of the bad one showed.
        """
        self._loader.quarantine(bad.place, self._stamps[bad], reason)
        with self._swapping:
            if self.current is bad:
                self._serve(good.place, self._stamps[good], good)

    def _is_settled_by(self, place: Path) -> bool:
        """Loads a candidate unless that is done or known to be useless; says whether the search ends with it."""
        served, stamp = self._served, stamp_of(place)
        if served and served[:2] == (place, stamp):
            return True
        loaded = not self._loader.is_quarantined(place, stamp) and self._swap_to(place, stamp)
        return loaded or bool(served and served[0] == place)

    def _swap_to(self, place: Path, stamp: Stamp) -> bool:
        self._hold(place)
        try:
            snapshot = self._loader.load(place, stamp)
        except QuarantinedError:
            return False
        with self._swapping:
            self._serve(place, stamp, snapshot)
        return True

    def _serve(self, place: Path, stamp: Stamp, snapshot: Snapshot) -> None:
        before = self.current
        self._stamps[snapshot] = stamp
        self.swaps.append(Swap(before.id if before else None, snapshot.id, now()))
        self.num_swaps += 1
        self._served = (place, stamp, snapshot)
        logger.info("serving %s%s", snapshot.id, f" instead of {before.id}" if before else "")

    def _candidates(self, pass_over: Callable[[Exception], None]) -> Iterator[Path]:
        """The places to serve from, most wanted first; a pinned run offers its pinned checkpoint only.

        Args:
            pass_over: is told of what cannot be read, or is pinned wrong, and of which nothing is offered.

        Raises:
            CheckpointError: the run that is wanted is pinned to nothing.
            OSError: its folder, or the one of all runs, cannot be read.
        """
        chosen = chosen_checkpoint(self.root, self.run, pass_over)
        if chosen is not None:
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
        # What was trained here is never given up for it, not even when the folder is emptied.
        if self.fallback and not (self._served and self._served[0].parent.parent == self.root):
            yield from reversed(list_checkpoints(self.fallback, pass_over))

    def _beside(self, place: Path) -> Snapshot:
        """The snapshot of a folder, kept beside the one that is served, where it is not that."""
        served = self._served
        if served and served[0] == place:
            return served[2]
        if not self._loader.num_kept:
            raise UnknownCheckpointError(
                f"{name_of(place)} is not what is served, beside which {self._extra_setting}=0 keeps nothing"
            )
        self._hold(place)
        return self._loader.load_and_keep(place)

    def _hold(self, place: Path) -> None:
        """Keeps the trainer from removing a checkpoint that is read or kept; the fallback is nobody's to remove."""
        if place.parent.parent == self.root:
            take_lease(place)

    def _places_named(self, name: str) -> list[Path]:
        """Where a checkpoint's id or a run's name leads, most wanted first; at least one."""
        run, is_id, _ = name.partition("/")
        roots = [self.root] if self.run in (None, run) else []
        if self.fallback is not None and self.fallback.name == run:
            roots.append(self.fallback.parent)
        if not roots:
            raise UnknownCheckpointError(f"{name!r} is not of the run {self.run!r}, the only one that is served here")
        for root in roots if is_run_name(run) else ():
            if is_id:
                with suppress(UnknownCheckpointError):
                    return [find_checkpoint(root, name)]
            elif (chosen := chosen_checkpoint(root, run, _ignore)) is not None:
                return list(_of_run(chosen, _ignore))
        # It says what there is.
        return [find_checkpoint(roots[0], name)]


def _ignore(error: Exception) -> None:
    pass


def _of_run(chosen: Path, pass_over: Callable[[Exception], None]) -> Iterator[Path]:
    yield chosen
    if not is_pinned(chosen.parent):
        yield from (place for place in reversed(list_checkpoints(chosen.parent, pass_over)) if place != chosen)
