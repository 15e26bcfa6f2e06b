"""The HTTP server, in the event loop that gRPC's runs in."""

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from latentforge.core.http.connections import ConnectionLimits, bounded_protocol
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import host_port, listening_socket
from latentforge.gateway.settings import GatewaySettings

# Longer than clients and load balancers keep a connection, or they send on one that is being closed.
_KEEP_ALIVE_SECONDS = 75
# For answers to be written that are ready when the grace is over.
_WRITE_SECONDS = 2.0


class HttpServer:
    """Serves ``app`` on GATEWAY_HTTP_PORT, with TLS where gRPC has it.

    Raises:
        SettingsError: the address is unavailable.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, port: int) -> None:
        try:
            self._socket = listening_socket(settings.gateway_host, port)
        except OSError as error:
            where, why = host_port(settings.gateway_host, port), error.strerror or errno.errorcode.get(error.errno or 0)
            text = f"cannot listen on {where} for HTTP ({why}); set GATEWAY_HTTP_PORT to a free port, or leave it unset"
            raise SettingsError(text) from None
        self.port: int = self._socket.getsockname()[1]
        seconds = settings.gateway_http_body_seconds
        limits = ConnectionLimits(
            settings.gateway_http_max_connections, seconds, seconds, "GATEWAY_HTTP_MAX_CONNECTIONS", seconds
        )
        self._server = _Server(
            uvicorn.Config(
                app,
                http=bounded_protocol(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                # Whoever may write X-Forwarded-For would choose whose turn it is.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                ssl_certfile=settings.gateway_tls_cert,
                ssl_keyfile=settings.gateway_tls_key,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accepts connections from now on."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended before it began")
            await asyncio.sleep(0.01)

    async def close(self, seconds: float = 0.0) -> bool:
        """Ends it; requests that are being answered should have ended before.

        Args:
            seconds: that clients get to take what is ready for them, at least :data:`_WRITE_SECONDS`.

        Returns:
            Whether they all did.
        """
        # Uvicorn says int, and gives it to asyncio.wait_for.
        self._server.config.timeout_graceful_shutdown = max(seconds, _WRITE_SECONDS)  # type: ignore[assignment]
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        left = list(self._server.server_state.connections)
        for connection in left:
            connection.transport.abort()
        self._socket.close()
        return not left


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the gateway's."""
        yield
