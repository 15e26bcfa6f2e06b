"""The end of a server, for what waits for its clients."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Shutdown:
    """Whether the server is about to end. Lives on the event loop.

    Attributes:
        begun: nothing new is taken any more.
    """

    def __init__(self) -> None:
        self.begun = False
        self._reading: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """Ends what waits for a client to send the rest of something."""
        self.begun = True
        for timeout in self._reading:
            if not timeout.expired():
                timeout.reschedule(0)

    @contextmanager
    def interrupting(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Makes ``timeout`` expire when the end begins."""
        self._reading.add(timeout)
        try:
            yield
        finally:
            self._reading.discard(timeout)
