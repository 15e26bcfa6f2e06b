"""Request bodies, bounded in bytes and in time, and read before anything of them is parsed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from latentforge.gateway.http.errors import HttpError

# Bodies of this size need no permit to be read.
_SMALL_BYTES = 64 * 1024
_LARGE_AT_ONCE = 16


@dataclass(frozen=True)
class HttpBodyLimits:
    """Bytes of a body, and seconds until it is there whole."""

    max_bytes: int
    seconds: float


class BodyReader:
    """Reads bodies: 413 for a longer one, before any of it is read where its length is told; 408 for a slow one.

    A body of more than 64 KiB is read while there are few others of its size, so a server holds a bounded number of
    bytes of half-sent ones, however many there are.
    """

    def __init__(self, limits: HttpBodyLimits) -> None:
        self._limits = limits
        self._permits = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def read(self, request: Request) -> bytes:
        """
        Raises:
            HttpError: 413 or 408.
            ClientDisconnect: the client hung up.
        """
        deadline = asyncio.get_running_loop().time() + self._limits.seconds
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > self._limits.max_bytes:
            raise self._too_large(deadline)
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline), self._permit(body) as permit:
                while True:
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._limits.max_bytes:
                        raise self._too_large(deadline)
                    if not message.get("more_body", False):
                        return bytes(body)
                    await permit.take_if_large()
        except TimeoutError:
            seconds = self._limits.seconds
            raise HttpError(
                408,
                "body_timeout",
                f"{len(body)} bytes of the body came in {seconds:g} s, and not the rest; send it faster, or raise "
                "GATEWAY_HTTP_BODY_SECONDS",
                headers={"connection": "close"},
            ) from None

    @asynccontextmanager
    async def _permit(self, body: bytearray) -> AsyncIterator["_Permit"]:
        permit = _Permit(self._permits, body)
        try:
            yield permit
        finally:
            permit.give_back()

    def _too_large(self, deadline: float) -> HttpError:
        return HttpError(
            413,
            "body_too_large",
            f"the body has more than {self._limits.max_bytes} bytes (GATEWAY_HTTP_MAX_BODY_BYTES); send fewer or "
            "shorter sequences at a time",
            linger_until=deadline,
        )


class _Permit:
    """What a body needs from its 65,537th byte on."""

    def __init__(self, permits: asyncio.Semaphore, body: bytearray) -> None:
        self._permits = permits
        self._body = body
        self._taken = False

    async def take_if_large(self) -> None:
        if not self._taken and len(self._body) > _SMALL_BYTES:
            await self._permits.acquire()
            self._taken = True

    def give_back(self) -> None:
        if self._taken:
            self._permits.release()
