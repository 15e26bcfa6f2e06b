"""Waiting for what another thread does, unless the run is asked to stop."""

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from latentforge.trainer.run.interrupt import Interrupted

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.2


class Waiting:
    """Waits, and counts for how long.

    Attributes:
        stop: asked while waiting; True raises Interrupted.
        waited: seconds that :meth:`wait` has taken so far, while nothing else was done.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self.waited = 0.0

    def wait(self, future: Future[T]) -> T:
        """Waits for a result.

        Raises:
            Interrupted: ``stop`` said so meanwhile; the future is cancelled.
        """
        started = time.monotonic()
        try:
            while not self.stop():
                done, _ = wait([future], timeout=_SECONDS_BETWEEN_LOOKS)
                if done:
                    return future.result()
        finally:
            self.waited += time.monotonic() - started
        future.cancel()
        raise Interrupted
