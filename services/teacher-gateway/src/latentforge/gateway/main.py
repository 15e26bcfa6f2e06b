"""The composition root: settings to a running server, and an orderly end."""

import asyncio
import logging
import signal
from importlib.metadata import version
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from latentforge.core.http.shutdown import Shutdown
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import host_port
from latentforge.core.tracing import Tracing
from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend
from latentforge.gateway.cache import open_cache
from latentforge.gateway.health import HealthMonitor
from latentforge.gateway.http.app import create_app
from latentforge.gateway.http.server import HttpServer
from latentforge.gateway.keys import load_keys
from latentforge.gateway.metrics import Metrics, MetricsServer
from latentforge.gateway.rpc.auth import KeyInterceptor, server_credentials
from latentforge.gateway.rpc.host import TeacherHost
from latentforge.gateway.rpc.interceptor import SERVICE, CallInterceptor
from latentforge.gateway.rpc.request_size import SizeInterceptor
from latentforge.gateway.rpc.servicer import TeacherServicer
from latentforge.gateway.scoring.teacher import Teacher
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

# A caller whose machine is gone closes nothing: one that answers no ping has left, and its work is cancelled.
_KEEPALIVE_MS, _PING_TIMEOUT_MS = 30_000, 20_000


class Gateway:
    """A server on a port. Health and reflection answer from :meth:`start` on, the teacher once it is loaded.

    Args:
        backend: given by tests; else TEACHER_BACKEND's.

    Raises:
        SettingsError: a setting that the backend needs is missing, or CACHE_URL, the TLS files or the keys are invalid.
    """

    def __init__(self, settings: GatewaySettings, backend: Backend | None = None) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self._backend = backend or build_backend(settings, self.metrics)
        self._credentials = server_credentials(settings)
        self._keys = load_keys(settings)
        self._store = open_cache(settings)
        self._tracing: Tracing | None = None
        self._metrics_server: MetricsServer | None = None
        self._http_server: HttpServer | None = None
        self._host = TeacherHost()
        self._shutdown = Shutdown()
        self._health = HealthMonitor(settings.gateway_health_seconds)
        self._teacher: Teacher | None = None
        self.port = settings.gateway_port

    @property
    def metrics_port(self) -> int | None:
        """Where metrics are served, if they are."""
        return None if self._metrics_server is None else self._metrics_server.port

    @property
    def http_port(self) -> int | None:
        """Where the HTTP API is served, if it is."""
        return None if self._http_server is None else self._http_server.port

    async def start(self) -> None:
        """Listens.

        Raises:
            SettingsError: the address is unavailable.
        """
        settings = self._settings
        if settings.otel_exporter_otlp_endpoint is not None:
            self._tracing = Tracing(
                settings.otel_exporter_otlp_endpoint, "teacher-gateway", version("latentforge-teacher-gateway")
            )
        interceptors: list[Any] = [CallInterceptor(self.metrics, self._keys, self._tracing)]
        if self._keys.needed:
            interceptors.append(KeyInterceptor(self._keys))
        servicer = TeacherServicer(self._host, settings.max_tokens_in_flight)
        interceptors.append(SizeInterceptor(servicer.check_size))
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                # What is larger than this never becomes an object of Python's, which would keep all callers waiting.
                ("grpc.max_receive_message_length", settings.max_request_mb << 20),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Without this a second gateway on the port would silently take half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
                # Callers ping too, many platforms every 10 s, while a call waits in the queue. gRPC's default is to
                # close the connection at the third ping within 5 minutes, and the call with it.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        add_TeacherServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._health.start()
        address = host_port(settings.gateway_host, settings.gateway_port)
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError:
            raise SettingsError(
                f"cannot listen on {address}; set GATEWAY_HOST and GATEWAY_PORT to a free address"
            ) from None
        if settings.gateway_metrics_port is not None:
            self._metrics_server = MetricsServer(self.metrics, settings.gateway_host, settings.gateway_metrics_port)
        if settings.gateway_http_port is not None:
            app = create_app(settings, self._keys, self._host, self._shutdown, self.metrics, self._tracing)
            self._http_server = HttpServer(app, settings, settings.gateway_http_port)
            await self._http_server.start()
        await self._server.start()
        with_tls = "" if self._credentials is None else " (TLS)"
        logger.info("listening%s on %s", with_tls, host_port(settings.gateway_host, self.port))
        if self._http_server is not None:
            address = host_port(settings.gateway_host, self._http_server.port)
            logger.info("HTTP%s on %s://%s", with_tls, "https" if with_tls else "http", address)
        if self._metrics_server is not None:
            address = host_port(settings.gateway_host, self._metrics_server.port)
            logger.info("metrics on http://%s/metrics", address)

    async def load(self) -> None:
        """Loads the teacher and serves.

        Raises:
            BackendError: it cannot be loaded.
        """
        await self._backend.load()
        self._teacher = Teacher(self._backend, self._store, self._settings, self.metrics)
        await self._teacher.warm_up()
        self._host.open(self._teacher)
        await self._health.watch(self._teacher)
        about = self._backend.description
        cache = (await self._teacher.cache_report()).kind
        logger.info("serving %s %s (%s), cache %s", about.model, about.revision, about.engine, cache)

    async def stop(self) -> None:
        """Says NOT_SERVING, refuses new calls, waits for those that run, and lets go of everything."""
        now, grace = asyncio.get_running_loop().time, self._settings.shutdown_grace_seconds
        deadline = now() + grace
        await self._health.stop()
        self._shutdown.begin()
        if not await self._host.drain(grace):
            logger.warning("calls were cut off after %g s", grace)
        await self._server.stop(grace=0.5)
        # Calls end when their answers are ready; their clients have what is left of the grace to read them.
        if self._http_server is not None and not await self._http_server.close(deadline - now()):
            logger.warning("answers over HTTP were cut off: their clients did not read them in %g s", grace)
        if self._teacher is None:
            await self._backend.close()
            await self._store.close()
        else:
            await self._teacher.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        logger.info("stopped")


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        SettingsError, BackendError: it cannot, and why.
    """
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    gateway = Gateway(settings)
    await gateway.start()
    loading = asyncio.create_task(gateway.load())
    ending = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait((loading, ending), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
        await ending
    finally:
        ending.cancel()
        loading.cancel()
        await gateway.stop()
