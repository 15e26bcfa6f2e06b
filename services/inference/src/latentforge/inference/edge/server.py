"""The HTTP server around the application: what a signal does, and how long what runs may take to end."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from latentforge.core.http.connections import ConnectionLimits, bounded_protocol
from latentforge.inference.operation.drain import Drain

# Asyncio accepts as many connections in one go as the backlog has: hundreds take a quarter of a second.
_ACCEPTED_AT_ONCE = 16
_BACKLOG = 2048
# Longer than clients and load balancers keep a connection, or they send on one that is being closed.
_KEEP_ALIVE_SECONDS = 75
# For answers to be written that are ready, once nothing is generated any more.
_WRITE_SECONDS = 5
# Of files that are no connections: weights, logs, threads' wake-up pipes.
_OTHER_FILES = 256

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """Goes on listening after SIGTERM, and answers, until what runs has ended or ``drain_seconds`` are over.

    A second signal ends the process at once, as if there were no handler.

    Args:
        app: the application, with :class:`latentforge.inference.edge.drain.DrainGate` in it.
        drain: of the gate.
        drain_seconds: the longest time that running requests get.
        cut_off: ends those that are not over by then; blocks until they know.
        limits: of connections.
    """

    def __init__(
        self, app: ASGIApp, drain: Drain, drain_seconds: float, cut_off: Callable[[], None], limits: ConnectionLimits
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=bounded_protocol(limits),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_ACCEPTED_AT_ONCE,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_WRITE_SECONDS,
            )
        )
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._cut_off = cut_off
        self._stop_asked_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it has drained."""
        allow_open_files(self.config.http.limits.max_connections + _OTHER_FILES)  # type: ignore[union-attr]
        # What is imported lives as long as the process; looking through it takes a fifth of a second each time.
        gc.collect()
        gc.freeze()
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The kernel's own backlog, in which those wait that are not accepted yet.
        for listener in sockets or []:
            listener.listen(_BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_asked_at is None:
            self._stop_asked_at = time.monotonic()
            return
        logger.warning("a second signal: ending at once, %d requests are cut off", self._drain.in_flight)
        signal.signal(sig, signal.SIG_DFL)
        os.kill(os.getpid(), sig)

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        if self._stop_asked_at is None:
            return False
        if not self._drain.begun:
            self._drain.begin()
        if not self._drain.in_flight:
            return True
        if time.monotonic() < self._stop_asked_at + self._drain_seconds:
            return False
        logger.warning("%d requests are cut off after %g s", self._drain.in_flight, self._drain_seconds)
        await asyncio.to_thread(self._cut_off)
        return True


def allow_open_files(count: int) -> None:
    """Raises the process's limit of open files, as far as it may, for so many to be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < count:
        logger.warning("only %d files may be open here, of %d for all connections; raise ulimit -n", wanted, count)
