"""Files that are whole or not there, and what tells one from another."""

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A temporary name says what it is to become, and which process writes it: `.summary.json~4711@host`.
_TEMPORARY = re.compile(r"\.(?P<name>.+)~(?P<pid>\d+)@(?P<host>[^/]+)")
# Another machine's processes cannot be looked for; what none of them has touched for so long is taken for left, in
# seconds.
LEFT_AFTER = 3600.0
# What this process is writing now.
_open: set[Path] = set()


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of one, after a power cut too."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` for a file or folder that takes its place when the block ends well.

    What was written is fsynced before the rename, and the folder that holds it after; a block that raises leaves no
    trace, and what a process that died left for the same path is removed. A folder that stands at ``path`` is moved
    away first, which is the one moment at which nothing is there.

    Args:
        path: where the file or folder goes.
        keep: do not remove a folder that stands there.

    Raises:
        OSError: the disk refuses, or ``keep`` is set and the folder at ``path`` has something in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary = _temporary_for(path)
    _open.add(temporary)
    try:
        yield temporary
        for written in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            fsync(written)
        if path.is_dir() and not keep:
            discard(path)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        remove(temporary)
        _open.discard(temporary)


def discard(path: Path) -> None:
    """Removes a file or a folder that others read: gone in one rename, and its content after that.

    Raises:
        OSError: the disk refuses.
    """
    # Another name than :func:`replacing` gives, which removes the old one while the new one waits.
    hidden = _temporary_for(path.with_name(f"{path.name}.old"))
    remove(hidden)
    with suppress(FileNotFoundError):
        path.replace(hidden)
    remove(hidden)


def sweep(folder: Path, name: str | None = None, *, left_after: float = LEFT_AFTER) -> list[Path]:
    """Removes what processes that died have left under temporary names; gives the paths.

    A temporary of a process that lives on this machine is kept, as is one of another machine that was touched
    lately.

    Args:
        folder: looked through, without the folders in it; it may not exist.
        name: only what was to become this file or folder; None takes all.
        left_after: seconds without a change after which another machine's are taken for left.

    Raises:
        OSError: the folder cannot be read, or something in it not removed.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (name is not None and match["name"] != name) or path in _open:
            continue
        ours = match["host"] == socket.gethostname()
        if not _is_alive(int(match["pid"])) if ours else time.time() - _last_change(path) > left_after:
            remove(path)
            found.append(path)
    return found


def _temporary_for(path: Path) -> Path:
    return path.with_name(f".{path.name}~{os.getpid()}@{socket.gethostname()}")


def _is_alive(pid: int) -> bool:
    """Whether a process may be writing under a temporary name; this one knows what it has open."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _last_change(path: Path) -> float:
    """When anything in a file or folder changed, in seconds since the epoch; now where it is gone meanwhile."""
    times = []
    with suppress(FileNotFoundError):
        times.append(path.lstat().st_mtime)
        times += [entry.lstat().st_mtime for entry in path.rglob("*")]
    return max(times, default=time.time())


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
