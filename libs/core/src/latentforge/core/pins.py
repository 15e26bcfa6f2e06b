"""Pins: ``<run>/pinned`` names the step of a run that is served instead of its newest."""

import codecs
import os
from pathlib import Path

from latentforge.core.files import write_atomically
from latentforge.core.manifest import CheckpointError

PINNED = "pinned"
_LONGEST_PIN = 1024
HOW_TO_PIN = "write a folder's name, like step-00001200, in UTF-8, or delete the file"


def is_pinned(run_folder: Path) -> bool:
    """Whether something stands where a run's pin does."""
    return os.path.lexists(run_folder / PINNED)


def read_pin(run_folder: Path) -> str | None:
    """What a run is pinned to, which may not exist; None where nothing is pinned.

    The file is in UTF-8 or, as Windows PowerShell writes, in UTF-16 with a byte order mark.

    Raises:
        CheckpointError: something stands there that is no pin or cannot be read.
    """
    path = run_folder / PINNED
    try:
        # A pipe would be waited for, and a link to a step's folder is a pin that somebody took for granted.
        if not is_pinned(run_folder):
            return None
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file; {HOW_TO_PIN}")
        with path.open("rb") as file:
            content = file.read(_LONGEST_PIN)
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return content.decode(encoding).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {HOW_TO_PIN}") from None


def write_pin(run_folder: Path, step_folder: str) -> None:
    """Pins a run to one of its steps, whose folder's name is given.

    Raises:
        CheckpointError: something stands in the file's place that is none.
        OSError: the file cannot be written.
    """
    path = run_folder / PINNED
    if path.is_dir() and not path.is_symlink():
        raise CheckpointError(f"{path} is a folder; remove it")
    write_atomically(path, f"{step_folder}\n")


def remove_pin(run_folder: Path) -> bool:
    """Lets a run be served at its newest step again; says whether it was pinned.

    Raises:
        OSError: the file cannot be removed.
    """
    if not is_pinned(run_folder):
        return False
    (run_folder / PINNED).unlink()
    return True
