"""Counts the bytes that pass between clients and a server, whatever protocol they speak."""

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 256 * 1024


class CountingProxy:
    """A TCP port of this machine that passes everything on to another one, from a thread of its own.

    Attributes:
        port: where clients connect.
        target_port: where new connections lead.
        sent: bytes from clients to the server; TCP's and IP's own headers are not in it.
        received: bytes from the server to clients.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting-proxy", daemon=True)
        self._passing: set[asyncio.Task[None]] = set()
        self.port = 0
        self.sent = 0
        self.received = 0

    def reset(self) -> None:
        """Counts from 0 again."""
        self.sent = self.received = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self.target_port)
        for source, sink, counter in ((client, to_server, "sent"), (server, to_client, "received")):
            task = self._loop.create_task(self._pass(source, sink, counter))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counter: str) -> None:
        with suppress(OSError):
            try:
                while data := await source.read(_CHUNK):
                    setattr(self, counter, getattr(self, counter) + len(data))
                    sink.write(data)
                    await sink.drain()
            finally:
                sink.close()
