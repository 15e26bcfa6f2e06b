"""What was changed of a stage under way: settings that may be, and from which step on."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentforge.core.files import write_atomically
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import SettingsChange
from latentforge.trainer.run.identity import begun_with, flatten, value_of

_HISTORY = "history.json"
_OF_OPTIM = {"steps", "lr", "weight_decay", "warmup_steps", "decay", "decay_from", "clip_norm"}
_OF_STAGE = {"num_publishes", "publish_every", "spike", "max_rewinds"}


def may_change(field: str) -> bool:
    """Whether a stage can be resumed with another value of a field: how far and how fast it learns, and from what
    mixture; not which weights there are and which data they see."""
    stage, _, name = field.partition(".")
    if stage not in ("autoencoder", "student"):
        return False
    section, _, rest = name.partition(".")
    return (section == "optim" and rest in _OF_OPTIM) or section == "weights" or name in _OF_STAGE


class History:
    """The changes of one stage, beside its states.

    Args:
        folder: the stage's, claimed with its first identity.
        identity: the stage's now.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._begun = folder / _HISTORY, begun_with(folder)
        self._now = {field: value for field, value in flatten(identity).items() if may_change(field)}

    @property
    def changes(self) -> list[SettingsChange]:
        if not self._path.is_file():
            return []
        return [SettingsChange.model_validate(entry) for entry in json.loads(self._path.read_text(encoding="utf-8"))]

    def record(self, step: int, say: Callable[[str], object]) -> None:
        """Writes down what is other than before, from ``step`` on, and says it.

        What was changed at a later step, which an older state knows nothing of, is forgotten: it is changed anew now.
        """
        kept = [change for change in self.changes if change.step <= step]
        changed = self._other_than(kept)
        if changed:
            time = datetime.now(UTC).isoformat(timespec="seconds")
            kept.append(SettingsChange(step=step, time=time, changed=changed))
            for field, (old, new) in changed.items():
                say(f"{field}: {old!r} -> {new!r} from step {step} on")
        if kept != self.changes:
            entries = [change.model_dump(mode="json") for change in kept]
            write_atomically(self._path, json.dumps(entries, indent=1) + "\n")

    def refuse(self, what: str) -> None:
        """Raises TrainerError where anything is other than it was at the end, and names it."""
        for field, (old, new) in self._other_than(self.changes).items():
            raise TrainerError(
                f"{what} was made with {field} = {old!r}, now it is {new!r}, and it is finished; take the old value, "
                "or start anew with --fresh or --run NAME"
            )

    def _other_than(self, changes: list[SettingsChange]) -> dict[str, tuple[Any, Any]]:
        before = {field: value_of(self._begun, field) for field in self._now}
        for change in changes:
            before |= {field: new for field, (_, new) in change.changed.items()}
        return {field: (before[field], new) for field, new in sorted(self._now.items()) if before[field] != new}
