"""Server-sent events: one JSON object each, a comment while nothing happens, and an end that clients know."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latentforge.core.http.disconnects import until_disconnected

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b": nothing new yet\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: BaseModel) -> bytes:
    """One event; JSON has no line breaks of its own."""
    return b"data: " + data.model_dump_json().encode() + b"\n\n"


async def with_heartbeats(events: AsyncGenerator[bytes], seconds: float) -> AsyncGenerator[bytes]:
    """The events, and a comment whenever there was none for so long, so that nobody takes the connection for dead."""
    next_one: asyncio.Task[bytes] | None = None
    try:
        while True:
            next_one = next_one or asyncio.create_task(_advance(events))
            done, _ = await asyncio.wait({next_one}, timeout=seconds)
            if not done:
                yield HEARTBEAT
                continue
            try:
                told = next_one.result()
            except StopAsyncIteration:
                return
            next_one = None
            yield told
    finally:
        if next_one is not None:
            next_one.cancel()
            await asyncio.wait({next_one})
        await events.aclose()


async def _advance(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


class EventStream(Response):
    """Sends events as they come, and closes their source as soon as the client has hung up.

    Args:
        events: what is sent.
        heartbeat_seconds: see :func:`with_heartbeats`.
        on_end: called however it ends, even before the first event.
    """

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes], heartbeat_seconds: float, on_end: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.on_end = on_end
        self.events = with_heartbeats(events, heartbeat_seconds)
        # Some proxies collect an answer before they pass it on, unless they are told.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(until_disconnected(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, gone):
                task.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)
            self.on_end()

    async def _write(self, send: Send) -> None:
        async with aclosing(self.events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self.events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
