"""Files that are whole or not there, and what tells one from another."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of one, after a power cut too."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` for a file or folder that takes its place when the block ends well.

    What was written is fsynced before the rename, and the folder that holds it after; a block that raises leaves no
    trace. A folder that stands at ``path`` is removed first, which is the one moment at which nothing is there.

    Args:
        path: where the file or folder goes.
        keep: do not remove a folder that stands there.

    Raises:
        OSError: the disk refuses, or ``keep`` is set and the folder at ``path`` has something in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    remove(temporary)
    try:
        yield temporary
        for written in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            fsync(written)
        if path.is_dir() and not keep:
            shutil.rmtree(path)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """A file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
