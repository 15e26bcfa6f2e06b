import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from latentforge.core.http.connections import ConnectionLimits, bounded_protocol
from latentforge.core.sockets import listening_socket

# More than the kernel keeps for a connection.
ANSWER = bytes(range(256)) * 2**16
SECONDS = 1.0


async def answer_at_length(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    assert scope["type"] == "http"
    headers = [(b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pieces = (ANSWER,) if scope["path"] == "/whole" else (ANSWER[at : at + 2**16] for at in range(0, 2**24, 2**16))
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """A port whose every answer is long, and the server."""
    limits = ConnectionLimits(10, 20.0, 20.0, "MAX_CONNECTIONS", write_seconds=SECONDS)
    http = bounded_protocol(limits)
    config = uvicorn.Config(answer_at_length, http=http, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with listening_socket("127.0.0.1", 0) as listener:
        await server.startup(sockets=[listener])
        try:
            yield listener.getsockname()[1], server
        finally:
            await server.shutdown(sockets=[listener])


@asynccontextmanager
async def asking(port: int, request: bytes) -> AsyncIterator[socket.socket]:
    """A client that takes little at a time, and has asked."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, request)
        yield client


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("path", [b"/whole", b"/pieces"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_who_takes_none_of_an_answer_is_let_go(path: bytes, version: bytes) -> None:
    async with serving() as (port, server), asking(port, b"GET %s HTTP/%s\r\nhost: x\r\n\r\n" % (path, version)):
        state = server.server_state
        await until(lambda: bool(state.tasks or state.total_requests))
        await until(lambda: not state.tasks and not state.connections)


async def test_who_takes_an_answer_slowly_gets_it_whole() -> None:
    async with serving() as (port, _), asking(port, b"GET /whole HTTP/1.0\r\n\r\n") as client:
        received = bytearray()
        while piece := await asyncio.get_running_loop().sock_recv(client, 2**16):
            received += piece
            # Twice as long as the longest pause altogether.
            await asyncio.sleep(2 * SECONDS / (len(ANSWER) / 2**16))
        assert received.partition(b"\r\n\r\n")[2] == ANSWER
