"""One trainer a run's folder: a lock that says who holds it.

The lock is flock's on ``runs/<run>/lock``. The kernel lets go of it when the process ends, however it ends, so on one
machine, its containers included, a lock is never stale. NFS passes flock on to the server, but some mounts and some
file systems keep it to themselves; so the holder also touches the file every few seconds, and one of another machine
that was touched lately holds the folder too. A machine is told by its boot, which containers share.
"""

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentforge.trainer.errors import TrainerError

LOCK = "lock"
_HEARTBEAT_SECONDS = 10.0
# Of a holder on another machine, after which it counts as dead.
STALE_AFTER = 120.0
# Whoever asks for the holder has the lock meanwhile, for microseconds.
_ASKING_SECONDS = 0.2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """Who trains in a folder.

    Attributes:
        host, pid: of the process.
        since: when it began, in seconds since the epoch.
        age: seconds since it was last seen.
    """

    host: str
    pid: int
    since: float
    age: float


def holder_of(folder: Path) -> Holder | None:
    """Who trains in a folder now; None where nobody does."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            if not _is_held(file, fcntl.LOCK_SH):
                return None
            found = _read(file)
            return Holder(found["host"], found["pid"], datetime.fromisoformat(found["since"]).timestamp(), _age(file))
    except (OSError, KeyError):
        # There is none, or its holder is writing it.
        return None


class RunLock:
    """Held from when it is made until :meth:`release`.

    Args:
        folder: the run's, which is made.

    Raises:
        TrainerError: another trainer has it; says who, and since when.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOCK
        self._file = self._locked()
        os.register_at_fork(after_in_child=self._close)
        self._file.truncate(0)
        self._file.write(json.dumps(_about()) + "\n")
        self._file.flush()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Lets go of the folder, which is removed where nothing else is in it."""
        self._done.set()
        self._heart.join()
        self._path.unlink(missing_ok=True)
        self._close()
        with suppress(OSError):
            self._path.parent.rmdir()

    def _locked(self) -> Any:
        give_up = time.monotonic() + _ASKING_SECONDS
        while True:
            # Not buffered in the way, as reading and writing at once would be.
            file = self._path.open("a+", encoding="utf-8")
            if _is_held(file, fcntl.LOCK_EX):
                if time.monotonic() >= give_up:
                    self._refuse(file)
                file.close()
                time.sleep(_ASKING_SECONDS / 10)
                continue
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            # Whoever had it removed it between our opening and our locking.
            file.close()

    def _refuse(self, file: Any) -> None:
        holder, age = _read(file), _age(file)
        file.close()
        raise TrainerError(
            f"{self._path.parent} is in use: process {holder.get('pid', '?')} on {holder.get('host', '?')} trains it "
            f"since {holder.get('since', '?')} and was last seen {age:.0f} s ago; stop it, choose another --run NAME, "
            f"or, if its machine is gone, try again once it has not been seen for {STALE_AFTER:.0f} s"
        )

    def _beat(self) -> None:
        while not self._done.wait(_HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._path)

    def _close(self) -> None:
        self._file.close()


def _is_held(file: Any, lock: int) -> bool:
    """Whether somebody else has a lock's file; else it is locked, where the file system can."""
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks; the heartbeat has to do.
        is_lockable = False
    else:
        is_lockable = True
    holder = _read(file)
    elsewhere = holder.get("boot") != _boot_id() and holder.get("host") != socket.gethostname()
    return bool(holder) and (elsewhere or not is_lockable) and _age(file) < STALE_AFTER


def _about() -> dict[str, Any]:
    # As exact as a status: what an earlier process wrote in the same second is not this one's.
    since = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "boot": _boot_id()}


def _read(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _age(file: Any) -> float:
    return max(0.0, time.time() - os.fstat(file.fileno()).st_mtime)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
