"""Request bodies, bounded in bytes and time while they are read, so that none holds up other requests."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentforge.core.http.shutdown import Shutdown

# Bodies of this size need no permit to be read.
SMALL_BYTES = 64 * 1024
_LARGE_AT_ONCE = 16
_LINGER_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class BodyRules:
    """Bounds of a body, and what a service answers about them in its API's own shape.

    Attributes:
        limit_of: bytes that the body of a request to a path may have.
        seconds: until it is there whole.
        seconds_setting: the environment variable that gave them.
        refusal: makes an exception of a status, a code, a message and ``headers``, whose ``response()`` answers it.
        ending: the same for what has not come whole when the server ends.
        advice: to who sends too much.
        told: called with the scope and what ``refusal`` made, where it is answered before the application sees the
            request, whose handlers of exceptions learn of it in no other way.
    """

    limit_of: Callable[[str], int]
    seconds: float
    seconds_setting: str
    refusal: Callable[..., Any]
    ending: Callable[[], Any]
    advice: str = "send a smaller one"
    told: Callable[[Scope, Any], None] = lambda scope, refusal: None

    def too_large(self, limit: int) -> Any:
        """To a body of more than ``limit`` bytes."""
        message = f"the body has more than {limit} bytes, the most that is taken here; {self.advice}"
        return self.refusal(413, "body_too_large", message, headers={"connection": "close"})

    def too_slow(self, num_bytes: int) -> Any:
        """To one of which only so many bytes came in time."""
        message = (
            f"{num_bytes} bytes of the body came in {self.seconds:g} s, and not the rest; send it faster, or raise "
            f"{self.seconds_setting}"
        )
        return self.refusal(408, "body_timeout", message, headers={"connection": "close"})


class BodyGuard:
    """Reads bodies by :class:`BodyRules`: 413 for a longer one, before any of it is read where its length is told; 408
    for one that does not come; what ``ending`` says for one that has not come when the shutdown begins.

    A body of more than 64 KiB is read while there are few others of its size, and sent as fast as it is read: so a
    server holds a bounded number of bytes of half-sent ones, however many there are.
    """

    def __init__(self, app: ASGIApp, rules: BodyRules, shutdown: Shutdown) -> None:
        self.app = app
        self._rules = rules
        self._shutdown = shutdown
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
        limit = self._rules.limit_of(scope["path"])
        body = _Body(receive, send, limit, self._rules, self._shutdown, self._permits)
        try:
            if told > limit:
                refusal = self._rules.too_large(limit)
                self._rules.told(scope, refusal)
                await refusal.response()(scope, body.receive, body.send)
            else:
                await self.app(scope, body.receive, body.send)
        finally:
            await body.close()


class _Body:
    """One body on its way in; stands between the application and the server."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        limit: int,
        rules: BodyRules,
        shutdown: Shutdown,
        permits: asyncio.Semaphore,
    ) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._rules = rules
        self._deadline = asyncio.get_running_loop().time() + rules.seconds
        self._shutdown = shutdown
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
                with self._shutdown.interrupting(timeout):
                    message = await self._receive()
                    if message["type"] != "http.request":
                        self._is_whole = self._is_gone = True
                        return message
                    self._num_bytes += len(message.get("body", b""))
                    if self._num_bytes > self._limit:
                        raise self._rules.too_large(self._limit)
                    self._is_whole = not message.get("more_body", False)
                    if not self._is_whole and not self._has_permit and self._num_bytes > SMALL_BYTES:
                        await self._permits.acquire()
                        self._has_permit = True
        except TimeoutError:
            raise (self._rules.ending() if self._shutdown.begun else self._rules.too_slow(self._num_bytes)) from None
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
                with self._shutdown.interrupting(timeout):
                    message: Message = {"more_body": True}
                    while message.get("more_body", False):
                        message = await self._receive()
                        await asyncio.sleep(_LINGER_PAUSE_SECONDS)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _give_permit_back(self) -> None:
        if self._has_permit:
            self._has_permit = False
            self._permits.release()
