"""The end of a server: what runs ends, nothing new begins."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Drain:
    """Whether the server is about to end, and what it still has to do. Lives on the event loop.

    Attributes:
        begun: nothing new is taken any more.
        in_flight: requests that are being answered.
    """

    def __init__(self) -> None:
        self.begun = False
        self.in_flight = 0
        self._reading: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """Refuses what comes from now on, and what has not come whole."""
        self.begun = True
        logger.info("ending: %d requests are being answered, new ones are refused", self.in_flight)
        for timeout in self._reading:
            if not timeout.expired():
                timeout.reschedule(0)

    @contextmanager
    def interrupting(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Makes ``timeout`` expire when the drain begins."""
        self._reading.add(timeout)
        try:
            yield
        finally:
            self._reading.discard(timeout)
