"""Leases: a server says which of a run's checkpoints it reads or keeps, so that the trainer does not remove them.

``<run>/leases/<step>~<pid>@<host>`` is an empty file. Its time says when the lease was taken or renewed; after
``LEASE_SECONDS`` without renewal it counts no more, so that a server that died holds nothing.
"""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

LEASES = "leases"
LEASE_SECONDS = 600.0
# Age from which one is renewed: whoever looks every second need not write every second.
_RENEWED_FROM = LEASE_SECONDS / 3
_LEASE = re.compile(r"(?P<step>step-\d+)~\d+@.+")


def take_lease(place: Path) -> bool:
    """Takes this process's lease of a checkpoint, or renews it where it is no longer young; says whether it has one.

    A folder that cannot be written, as a volume that is mounted to be read alone, gives no lease; servers go on
    without.
    """
    path = _path(place)
    try:
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < _RENEWED_FROM:
                return True
        path.parent.mkdir(exist_ok=True)
        path.touch()
    except OSError:
        return False
    return True


def leased(run_folder: Path) -> set[str]:
    """Folder names of the run's checkpoints that somebody has on lease; leases that have run out are removed.

    Raises:
        OSError: the leases cannot be read.
    """
    found = set()
    folder = run_folder / LEASES
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _LEASE.fullmatch(path.name)
        if match is None:
            continue
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime <= LEASE_SECONDS:
                found.add(match["step"])
            else:
                path.unlink()
    return found


def _path(place: Path) -> Path:
    return place.parent / LEASES / f"{place.name}~{os.getpid()}@{socket.gethostname()}"
