"""Room on a disk, looked at before something large is written."""

import errno
import shutil
from pathlib import Path


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there


def free_bytes(folder: Path) -> int:
    """Bytes that can be written below a folder, which may not exist."""
    return shutil.disk_usage(existing(folder)).free


def check_room(folder: Path, num_bytes: int) -> None:
    """Checks that so much can be written below a folder.

    Args:
        folder: it may not exist; the disk of the nearest one above it that does counts.
        num_bytes: what is to be written.

    Raises:
        OSError: there is less room; says how much there is and how much is needed.
    """
    free = free_bytes(folder)
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{num_bytes / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free; make room, or point the folder "
            "to another disk",
            str(folder),
        )
