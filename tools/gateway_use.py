"""Which commands on this machine use a gateway, so that who started it does not end it under the others."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOK_EVERY = 0.5


class GatewayUse:
    """One command's use of a gateway, which all commands of this machine call the same; one that dies uses it no more.

    Use is a shared lock of a file that all commands of one user find. Who stops the gateway holds it alone, so that a
    command which comes in that moment waits, finds no gateway, and starts one.
    """

    def __init__(self, name: str) -> None:
        self._path = Path(tempfile.gettempdir()) / f"latentforge-gateway-{os.getuid()}-{name}.lock"

    def __enter__(self) -> Self:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_SH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def wait_for_others(self, tell: Callable[[], None]) -> None:
        """Returns when no other command uses the gateway, and lets none begin to until this use ends.

        Args:
            tell: called once, if there is anything to wait for.
        """
        told = False
        while not self._alone():
            if not told:
                tell()
                told = True
            time.sleep(_LOOK_EVERY)

    def _alone(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A change of lock that fails has given the old one up.
            fcntl.flock(self._file, fcntl.LOCK_SH)
            return False
        return True
