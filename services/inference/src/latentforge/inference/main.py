"""The composition root: settings in, a running service out."""

import errno
import logging
import signal
import socket
from dataclasses import dataclass
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from latentforge.core.devices import choose_device
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import http_address, listening_socket
from latentforge.inference.checkpoints.registry import Registry
from latentforge.inference.engine import Engine
from latentforge.inference.rest.app import create_app
from latentforge.inference.settings import InferenceSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    app: FastAPI
    registry: Registry
    engine: Engine


def build_registry(settings: InferenceSettings) -> Registry:
    """A registry that has not looked at the folder yet; also sets torch's threads."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = torch.device(choose_device("INFERENCE_DEVICE", settings.inference_device, torch.cuda.device_count()))
    return Registry(settings.checkpoints_dir, settings.checkpoint_run, device, fallback=settings.fallback_run)


def build(settings: InferenceSettings) -> Service:
    """Wires the service; nothing is loaded or started yet."""
    registry = build_registry(settings)
    engine = Engine(
        max_concurrent=settings.inference_max_concurrent,
        queue_limit=settings.inference_queue_limit,
        request_timeout=settings.inference_request_timeout,
    )
    return Service(create_app(settings, registry, engine), registry, engine)


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


def serve(settings: InferenceSettings) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets running requests end and returns.

    Raises:
        SettingsError: the address or the device is unavailable.
    """
    server_socket = listen(settings.inference_host, settings.inference_port)
    service = build(settings)
    config = uvicorn.Config(
        service.app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.inference_shutdown_seconds,
    )
    # uvicorn raises the signal that stopped it once more when it is done; by default that would be the exit status.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    logger.info("listening on %s, watching %s", http_address(server_socket), settings.checkpoints_dir)
    try:
        uvicorn.Server(config).run(sockets=[server_socket])
    finally:
        service.engine.close()
        server_socket.close()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
