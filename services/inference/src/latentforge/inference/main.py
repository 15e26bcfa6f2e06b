"""The composition root: settings in, a running service out."""

import errno
import logging
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import version

import torch
from fastapi import FastAPI

from latentforge.core.devices import choose_device
from latentforge.core.http.connections import ConnectionLimits
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import browser_address, http_address, listening_socket
from latentforge.core.tracing import Tracing
from latentforge.inference.edge.bodies import BodyLimits
from latentforge.inference.edge.install import install
from latentforge.inference.edge.server import DrainingServer
from latentforge.inference.engine import AsyncEngine
from latentforge.inference.operation.drain import Drain
from latentforge.inference.operation.engine_metrics import EngineMetrics
from latentforge.inference.operation.metrics import InferenceMetrics
from latentforge.inference.page.routes import add_page
from latentforge.inference.rest.app import create_app
from latentforge.inference.rest.services import Services
from latentforge.inference.settings import InferenceSettings
from latentforge.model.engine.limits import EngineLimits
from latentforge.snapshots.registry import Registry
from latentforge.snapshots.snapshot import DecodingMemory

# The engine's thread gives up the GIL at every operation of torch, and takes it back from whoever has it then only
# after this time. With Python's 5 ms a step beside a busy thread took 3 to 30 % longer.
_SWITCH_SECONDS = 0.0002

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    app: FastAPI
    registry: Registry
    engine: AsyncEngine
    drain: Drain
    metrics: InferenceMetrics
    tracing: Tracing | None


def build_registry(settings: InferenceSettings) -> Registry:
    """A registry that has not looked at the folder yet; also sets torch's threads."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = torch.device(choose_device("INFERENCE_DEVICE", settings.inference_device, torch.cuda.device_count()))
    return Registry(
        settings.checkpoints_dir,
        settings.checkpoint_run,
        device,
        settings.fallback_run,
        DecodingMemory(settings.inference_slots, settings.inference_exact, "INFERENCE_SLOTS"),
        num_extra=settings.inference_extra_checkpoints,
        extra_setting="INFERENCE_EXTRA_CHECKPOINTS",
    )


def build(settings: InferenceSettings, registry: Registry | None = None) -> Service:
    """Wires the service, around a registry that is given, or else made; nothing is loaded or started yet."""
    registry = registry or build_registry(settings)
    drain, metrics = Drain(), InferenceMetrics()
    engine = AsyncEngine(
        EngineLimits(
            queue_limit=settings.inference_queue_limit,
            queue_tokens=settings.inference_queue_tokens,
            prefill_tokens=settings.inference_prefill_tokens,
            request_seconds=settings.inference_request_timeout,
        ),
        EngineMetrics(metrics),
    )
    _watch(metrics, registry, engine)
    tracing = None
    if settings.otel_exporter_otlp_endpoint is not None:
        tracing = Tracing(settings.otel_exporter_otlp_endpoint, "inference", version("latentforge-inference"))

    def longest_prompt() -> int | None:
        return registry.current.max_prompt_bytes if registry.current else None

    app = create_app(settings, registry, engine, drain)
    add_page(app, Services(settings, registry, engine))
    limits = BodyLimits(settings.inference_max_body_bytes, settings.inference_body_seconds, longest_prompt)
    install(app, settings, limits, drain, metrics, tracing)
    return Service(app, registry, engine, drain, metrics, tracing)


def _watch(metrics: InferenceMetrics, registry: Registry, engine: AsyncEngine) -> None:
    """Shows the load and what is served at every scrape."""
    metrics.gauge("inference_queued", "Texts without a slot.", lambda: engine.queued)
    metrics.gauge("inference_running", "Texts that are written or scored.", lambda: engine.running)
    metrics.gauge("inference_slots_used", "Slots that texts have.", lambda: engine.engine.slots_used)
    metrics.gauge("inference_slots", "Slots of all loaded checkpoints in use.", lambda: engine.engine.slots_total)
    metrics.gauge("inference_quarantined", "Checkpoints that failed their checks.", lambda: len(registry.quarantined))
    metrics.counter("inference_swaps", "Changes of what is served.", lambda: registry.num_swaps)
    metrics.counter("inference_loads", "Checkpoints that passed their checks.", lambda: registry.counts.loads)
    metrics.counter("inference_load_seconds", "What their loads took.", lambda: registry.counts.load_seconds)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before anything slow is done.

    Raises:
        SettingsError: nothing can listen there; the message names the address and what to do.
    """
    try:
        return listening_socket(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is taken by another program; stop it, or choose another with --port "
                "or INFERENCE_PORT"
            ) from None
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; change --host or INFERENCE_HOST, "
            "or --port or INFERENCE_PORT"
        ) from None


def serve(settings: InferenceSettings, registry: Registry | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C, then refuses new requests, lets those that run end, and returns.

    Args:
        settings: of everything.
        registry: says what is served; the settings' own by default.

    Raises:
        SettingsError: the address or the device is unavailable.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    server_socket = listen(settings.inference_host, settings.inference_port)
    service = build(settings, registry)
    seconds = settings.inference_body_seconds
    limits = ConnectionLimits(
        settings.inference_max_connections, seconds, seconds, "INFERENCE_MAX_CONNECTIONS", seconds
    )
    server = DrainingServer(
        service.app, service.drain, settings.inference_shutdown_seconds, service.engine.close, limits
    )
    logger.info("listening on %s, watching %s", http_address(server_socket), settings.checkpoints_dir)
    logger.info("page at %s/", browser_address(server_socket))
    try:
        server.run(sockets=[server_socket])
    finally:
        service.engine.close()
        server_socket.close()
        if service.tracing is not None:
            service.tracing.close()
    logger.info("stopped")
