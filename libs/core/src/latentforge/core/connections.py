"""HTTP connections, bounded in number, in the bytes of a request's head, and in the time that a request may take to
arrive."""

import asyncio
import json
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
    """

    max_connections: int
    head_seconds: float
    body_seconds: float
    setting: str


class BoundedProtocol(HttpToolsProtocol):
    """One connection within ``limits``."""

    limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            message = f"all {self.limits.max_connections} connections are open; {self.limits.setting} allows more"
            self._refuse(503, "too_many_connections", message)
        else:
            self._arm(self.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

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
