"""A stage's state on disk: weights, optimizer, step and figures; saved whole or not at all, no pickle."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentforge.core.disk import check_room
from latentforge.core.files import discard, replacing, write_atomically
from latentforge.model.sharded import piece_like
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.history import History, may_change
from latentforge.trainer.run.identity import claim
from latentforge.trainer.run.ranks import ALONE, Ranks
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.parallel import own_weights, whole_weights

_FOLDER = re.compile(r"step-(\d{8})")
_PROGRESS = "progress.json"
# In progress.json beside the loop's own; states of before do not say, and were all alike.
_REGULAR = "regular"


class StageState:
    """The saved states of one stage of one run, ``runs/<run>/state/<stage>/``.

    Those of a run's regular intervals are what it goes back to when its loss breaks down: the same ones whether it was
    interrupted, and so saved more, or not.

    Args:
        folder: the stage's folder.
        identity: everything that the stage's result depends on, as nested dictionaries.
        restart: the options that start anew, for the message.
        ranks: the processes that train it: all save and load together, the first one writes.
        keep: how many of the newest regular states are kept, beside the newest of all; one that is torn is passed over
            for the one before.
        say: is told what is passed over.

    Raises:
        TrainerError: the folder belongs to another recipe; names the first field that differs, both values and how
            to start anew.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        restart: str = "--fresh or --run NAME",
        ranks: Ranks = ALONE,
        *,
        keep: int = 2,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.folder, self._ranks, self._keep, self._say = folder, ranks, keep, say
        self._torn: set[Path] = set()
        with ranks.main_first():
            claim(folder, identity, restart, may_change)
        self.history = History(folder, identity)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimisation: Optimisation,
        progress: Mapping[str, Any],
        *,
        regular: bool = True,
    ) -> None:
        """Saves the state after ``step`` steps and drops those that are older than the newest few.

        Raises:
            OSError: the disk is full or refuses; the states that were there are as they were.
        """
        place = self.folder / f"step-{step:08d}"
        weights, tensors = whole_weights(model), optimisation.state()
        if not self._ranks.is_main:
            return
        content = json.dumps({**progress, _REGULAR: regular})
        if place.exists() and place not in self._torn:
            # A step has one state, whether the run was interrupted before it or not.
            if regular and not _is_regular(place):
                write_atomically(place / _PROGRESS, content)
            return
        self._make_room(_size(weights) + _size(tensors))
        with replacing(place) as temporary:
            temporary.mkdir()
            _save(weights, temporary / "model.safetensors")
            _save(tensors, temporary / "optimizer.safetensors")
            (temporary / _PROGRESS).write_text(content, encoding="utf-8")
        # Only now: until the new state is on the disk the old one is all there is.
        self._torn.discard(place)
        for torn in self._torn:
            discard(torn)
        self._torn.clear()
        places = [each for _, each in self._places()]
        kept = {places[-1], *[each for each in places if _is_regular(each)][-self._keep :]}
        for each in places:
            if each not in kept:
                discard(each)

    def try_save(
        self,
        step: int,
        model: nn.Module,
        optimisation: Optimisation,
        progress: Mapping[str, Any],
        *,
        is_last: bool,
    ) -> bool:
        """As :meth:`save` at a regular interval, but a disk that refuses is a warning: the run is whole in memory, and
        a kill costs it the steps since the state before, which stays.

        Args:
            step, model, optimisation, progress: as there.
            is_last: whether the stage ends here; then nothing would save it later.

        Returns:
            Whether it is saved; the same on all processes.

        Raises:
            OSError: the disk refuses the last one.
        """
        is_refused = False
        try:
            self.save(step, model, optimisation, progress)
        except OSError as error:
            if is_last:
                raise
            is_refused = True
            self._say(f"warning: the state of step {step} cannot be saved ({error}); the next save tries again")
        return not self._ranks.any(is_refused)

    def replace_progress(self, step: int, progress: Mapping[str, Any]) -> None:
        """Writes anew what a regular state says of its progress."""
        if self._ranks.is_main:
            write_atomically(self.folder / f"step-{step:08d}" / _PROGRESS, json.dumps({**progress, _REGULAR: True}))

    def _make_room(self, num_bytes: int) -> None:
        """Looks for room for a state, and gives up all older ones but one for it before it gives up."""
        while True:
            try:
                return check_room(self.folder, num_bytes)
            except OSError:
                spare = [place for _, place in self._places() if place not in self._torn][:-1]
                if not spare:
                    raise
                discard(spare[0])

    def load(
        self, model: nn.Module, optimisation: Optimisation, *, regular: bool = False
    ) -> tuple[int, dict[str, Any]] | None:
        """Restores the newest state into model and optimizers; gives its step and progress, or None where nothing is
        saved.

        A state that is torn is passed over for the one before it, and replaced when its step is saved again. With
        ``regular`` only those of regular intervals are looked at.

        Raises:
            TrainerError: no state can be read, or none fits the model.
        """
        places = self._places()[::-1]
        first: TrainerError | None = None
        for step, place in places:
            if regular and not _is_regular(place):
                continue
            try:
                progress = self._read(place, model, optimisation)
            except TrainerError as error:
                first = first or error
                self._torn.add(place)
                continue
            if first is not None:
                self._say(f"warning: {first}. Passed over: resuming from step {step}")
            if self._ranks.is_main:
                self.history.record(step, self._say)
            return step, progress
        if first is not None:
            self._torn.clear()
            raise first
        return None

    def _read(self, place: Path, model: nn.Module, optimisation: Optimisation) -> dict[str, Any]:
        try:
            weights = load_file(place / "model.safetensors")
            tensors = load_file(place / "optimizer.safetensors")
            progress = json.loads((place / _PROGRESS).read_text(encoding="utf-8"))
            own = own_weights(model)
            pieces = {name: piece_like(value, own[name]) for name, value in weights.items() if name in own}
            model.load_state_dict(pieces, strict=False)
            unexpected, missing = set(weights) - set(own), set(own) - set(weights)
            if unexpected or missing:
                raise ValueError(f"weights differ: {min(unexpected | missing)}")
            optimisation.load_state(tensors)
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise TrainerError(
                f"{place} cannot be resumed from ({error}); delete it, or start anew with --fresh"
            ) from None
        progress.pop(_REGULAR, None)
        return dict(progress)

    def _places(self) -> list[tuple[int, Path]]:
        return _saved(self.folder)


def check_steps(field: str, steps: int, made: int) -> None:
    """Raises TrainerError where a stage has made more steps than it is to make."""
    if made > steps:
        raise TrainerError(f"{field} is {steps}, but {made} steps are made; set it to {made} or more")


def has_state(folder: Path) -> bool:
    """Whether a stage's folder, which may not exist, holds a state to resume from."""
    return folder.is_dir() and bool(_saved(folder))


def _saved(folder: Path) -> list[tuple[int, Path]]:
    """The saved steps, oldest first, and where they are."""
    found = [(m, p) for p in folder.iterdir() if (m := _FOLDER.fullmatch(p.name))]
    return sorted((int(m[1]), p) for m, p in found)


def _is_regular(place: Path) -> bool:
    try:
        return bool(json.loads((place / _PROGRESS).read_text(encoding="utf-8")).get(_REGULAR, True))
    except (OSError, ValueError):
        return False


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        # So it calls a full disk, too.
        raise OSError(f"{path} cannot be written: {error}") from None


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
