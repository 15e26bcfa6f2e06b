"""Request bodies, bounded in bytes and time while they are read, so that none holds up other requests."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentforge.inference.edge.drain import ending
from latentforge.inference.operation.drain import Drain
from latentforge.inference.rest.errors import RestError

# Bodies of this size need no permit to be read.
_SMALL_BYTES = 64 * 1024
_LARGE_AT_ONCE = 16
# Below this a body is read whatever its prompt may have.
_LEAST_LIMIT_BYTES = 2**20
# Those whose body holds a single text, which must fit the context.
_ONE_PROMPT = {"/generate", "/v1/chat/completions"}
# JSON writes a character of one byte with up to six, as \u0041.
_MOST_JSON_BYTES = 6
_LINGER_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of a body.

    Attributes:
        max_bytes: of any.
        seconds: until it is there whole.
        longest_prompt: bytes of the longest prompt that what is served takes; None where nothing is.
    """

    max_bytes: int
    seconds: float
    longest_prompt: Callable[[], int | None] = lambda: None

    def of(self, path: str) -> int:
        """Bytes that the body of a request to ``path`` may have."""
        longest = self.longest_prompt() if path in _ONE_PROMPT else None
        if longest is None:
            return self.max_bytes
        return min(self.max_bytes, max(_LEAST_LIMIT_BYTES, _MOST_JSON_BYTES * longest + _SMALL_BYTES))


class BodyGuard:
    """Reads bodies within :class:`BodyLimits`: 413 for a longer one, before any of it is read where its length is
    told; 408 for one that does not come; 503 for one that has not come when the drain begins.

    A body of more than 64 KiB is read while there are few others of its size, and sent as fast as it is read: so a
    server holds a bounded number of bytes of half-sent ones, however many there are.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits, drain: Drain) -> None:
        self.app = app
        self._limits = limits
        self._drain = drain
        self._permits = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told, is_chunked = 0, False
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                told = int(value)
            elif name == b"transfer-encoding":
                is_chunked = True
        if not told and not is_chunked:
            await self.app(scope, receive, send)
            return
        limit = self._limits.of(scope["path"])
        body = _Body(receive, send, limit, self._limits.seconds, self._drain, self._permits)
        try:
            if told > limit:
                await _too_large(limit).response()(scope, body.receive, body.send)
            else:
                await self.app(scope, body.receive, body.send)
        finally:
            await body.close()


class _Body:
    """One body on its way in; stands between the application and the server."""

    def __init__(
        self, receive: Receive, send: Send, limit: int, seconds: float, drain: Drain, permits: asyncio.Semaphore
    ) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._drain = drain
        self._permits = permits
        self._has_permit = False
        self._num_bytes = 0
        self._is_whole = False
        self._is_gone = False
        self._closes = False
        self._owes_the_end = False

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline) as timeout:
                with self._drain.interrupting(timeout):
                    message = await self._receive()
                    if message["type"] != "http.request":
                        self._is_whole = self._is_gone = True
                        return message
                    self._num_bytes += len(message.get("body", b""))
                    if self._num_bytes > self._limit:
                        raise _too_large(self._limit)
                    self._is_whole = not message.get("more_body", False)
                    if not self._is_whole and not self._has_permit and self._num_bytes > _SMALL_BYTES:
                        await self._permits.acquire()
                        self._has_permit = True
        except TimeoutError:
            if self._drain.begun:
                raise ending() from None
            raise RestError(
                408,
                "body_timeout",
                f"{self._num_bytes} bytes of the body came in {self._seconds:g} s, and not the rest; send it faster, "
                "or raise INFERENCE_BODY_SECONDS",
                headers={"connection": "close"},
            ) from None
        if self._is_whole:
            self._give_permit_back()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closes = any(
                name.lower() == b"connection" and b"close" in value.lower() for name, value in message["headers"]
            )
        # A connection that is closed with bytes unread is reset, and its client may never see the answer.
        elif self._closes and not self._is_whole and not message.get("more_body", False):
            message = {**message, "more_body": True}
            self._owes_the_end = True
        await self._send(message)

    async def close(self) -> None:
        """Reads what comes of a refused body, slowly and to its deadline, and ends the answer."""
        self._give_permit_back()
        if not self._owes_the_end:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline) as timeout:
                with self._drain.interrupting(timeout):
                    message: Message = {"more_body": True}
                    while message.get("more_body", False):
                        message = await self._receive()
                        await asyncio.sleep(_LINGER_PAUSE_SECONDS)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _give_permit_back(self) -> None:
        if self._has_permit:
            self._has_permit = False
            self._permits.release()


def _too_large(limit: int) -> RestError:
    return RestError(
        413,
        "body_too_large",
        f"the body has more than {limit} bytes, the most that is taken here; send a smaller one",
        headers={"connection": "close"},
    )
