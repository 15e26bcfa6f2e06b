"""What a folder's content depends on, kept beside it: nothing is resumed with other settings than it was begun with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentforge.core.files import write_atomically
from latentforge.trainer.errors import TrainerError

_IDENTITY = "identity.json"


def claim(folder: Path, identity: Mapping[str, Any], restart: str) -> None:
    """Writes into a folder what its content depends on, or finds that it is the same; raises as StageState does."""
    path = folder / _IDENTITY
    flat = _flatten(json.loads(json.dumps(identity)))
    if path.is_file():
        saved = _flatten(json.loads(path.read_text(encoding="utf-8")))
        for field in sorted(set(saved) | set(flat)):
            if saved.get(field) != flat.get(field):
                raise TrainerError(
                    f"{folder} was begun with {field} = {saved.get(field)!r}, now it is {flat.get(field)!r}; "
                    f"resume with the old value, or start anew with {restart}"
                )
    else:
        write_atomically(path, json.dumps(identity, indent=1) + "\n")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
