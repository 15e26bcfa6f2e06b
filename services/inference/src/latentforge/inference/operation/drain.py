"""The end of a server: what runs ends, nothing new begins."""

import logging

from latentforge.core.http.shutdown import Shutdown

logger = logging.getLogger(__name__)


class Drain(Shutdown):
    """Whether the server is about to end, and what it still has to do.

    Attributes:
        in_flight: requests that are being answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = 0

    def begin(self) -> None:
        """Refuses what comes from now on, and what has not come whole."""
        logger.info("ending: %d requests are being answered, new ones are refused", self.in_flight)
        super().begin()
