"""What a folder's content depends on, kept beside it: nothing is resumed with other settings than it was begun with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentforge.core.files import write_atomically
from latentforge.trainer.config.recipe import default_of
from latentforge.trainer.errors import TrainerError

_IDENTITY = "identity.json"


def claim(
    folder: Path,
    identity: Mapping[str, Any],
    restart: str,
    may_change: Callable[[str], bool] = lambda field: False,
) -> None:
    """Writes into a folder what its content depends on, or finds that it is the same; raises as StageState does.

    Fields that ``may_change`` names are not compared. One that the recipe did not have when the folder was begun is
    compared with its default.
    """
    path = folder / _IDENTITY
    flat = flatten(identity)
    if path.is_file():
        saved = begun_with(folder)
        for field in sorted(set(saved) | set(flat)):
            before = value_of(saved, field)
            if before != flat.get(field) and not may_change(field):
                raise TrainerError(
                    f"{folder} was begun with {field} = {before!r}, now it is {flat.get(field)!r}; "
                    f"resume with the old value, or start anew with {restart}"
                )
    else:
        write_atomically(path, json.dumps(identity, indent=1) + "\n")


def begun_with(folder: Path) -> dict[str, Any]:
    """What a folder was begun with, by dotted name."""
    return flatten(json.loads((folder / _IDENTITY).read_text(encoding="utf-8")))


def value_of(saved: Mapping[str, Any], field: str) -> Any:
    """A field's value in what was saved, or the recipe's default where it had no such field then."""
    return saved[field] if field in saved else default_of(field)


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries by dotted name, with values as JSON has them."""
    return _flatten(json.loads(json.dumps(values)), "")


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
