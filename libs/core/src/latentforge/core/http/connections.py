"""HTTP connections, bounded in number, in the bytes of a request's head, in the time that a request may take to arrive,
and in the time that a client may take none of its answer."""

import asyncio
import fcntl
import json
import sys
import termios
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from latentforge.core.api_errors import error_body

_MAX_HEAD_BYTES = 64 * 1024
# The application answers a body that does not come; this closes the connection where it has not.
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of connections.

    Attributes:
        max_connections: that are open at the same time; more are answered 503.
        head_seconds: from a connection's begin, or a request's first byte, to the end of its headers.
        body_seconds: from there to the end of its body.
        setting: the variable that ``max_connections`` is from.
        write_seconds: that a client may take nothing of what is there for it.
    """

    max_connections: int
    head_seconds: float
    body_seconds: float
    setting: str
    write_seconds: float


class BoundedProtocol(HttpToolsProtocol):
    """One connection within ``limits``."""

    limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._num_head_bytes = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._num_unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # What the kernel does not take at once pauses writing, and so is timed. TLS would pause at 0 for nothing.
        transport.set_write_buffer_limits(high=1)
        if len(self.connections) > self.limits.max_connections:
            message = f"all {self.limits.max_connections} connections are open; {self.limits.setting} allows more"
            self._refuse(503, "too_many_connections", message)
        else:
            self._arm(self.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                message = f"the request's line and headers have more than {_MAX_HEAD_BYTES} bytes; send fewer"
                self._refuse(431, "headers_too_large", message)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._num_head_bytes = True, 0
        self._arm(self.limits.head_seconds)

    def on_headers_complete(self) -> None:
        self._in_head = False
        try:
            super().on_headers_complete()
        except httptools.HttpParserInvalidURLError as error:
            # As for everything else that is no HTTP: it is answered 400.
            raise httptools.HttpParserError(str(error)) from None
        self._arm(self.limits.body_seconds + _GRACE_SECONDS)

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", msg)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._on_late, seconds)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_late(self, seconds: float) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        # Bytes of the next request are not read while one is answered.
        if self.pipeline or (self._in_head and is_answering):
            self._arm(seconds)
        elif self._in_head and self._num_head_bytes:
            self._refuse(408, "headers_timeout", f"the request's headers did not come in {seconds:g} s")
        elif is_answering:
            self.transport.abort()
        else:
            self.transport.close()

    def _start_write_timer(self) -> None:
        self._stop_write_timer()
        self._num_unsent = self._unsent()
        self._write_timer = self.loop.call_later(self.limits.write_seconds, self._on_unsent)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_unsent(self) -> None:
        # Nothing is added while writing is paused. Closing would wait for the client.
        if self._unsent() < self._num_unsent:
            self._start_write_timer()
        else:
            self.transport.abort()

    def _unsent(self) -> int:
        """Bytes that the client has not taken. Those with the kernel count: it keeps megabytes, and asks for more only
        when a good part of them is gone."""
        unsent = self.transport.get_write_buffer_size()
        try:
            descriptor = self.transport.get_extra_info("socket").fileno()
            return unsent + int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return unsent

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers, past the application, and closes."""
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(status, code, message)).encode()
        about = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + about + body)
        self.transport.close()


def bounded_protocol(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol with these limits; uvicorn makes one for each connection, and knows no other arguments."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
