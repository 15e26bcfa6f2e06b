"""The trainer's status over HTTP: what an orchestrator's health check, Prometheus and a curious person read."""

import threading
import time
from dataclasses import asdict
from typing import Any

import uvicorn
from fastapi import FastAPI, Response

from latentforge.core.metrics import CONTENT_TYPE, exposition
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import listening_socket
from latentforge.trainer.run.prometheus import registry_of
from latentforge.trainer.run.status import Status


def build_app(status: Status) -> FastAPI:
    app = FastAPI(title="LatentForge trainer", docs_url="/docs")
    registry = registry_of(status)

    # Starlette would answer HEAD here; FastAPI leaves it to us.
    @app.get("/health")
    @app.head("/health", include_in_schema=False)
    def health() -> dict[str, str]:
        """Whether the process lives; a finished run is healthy."""
        return {"status": "ok"}

    @app.get("/status")
    def get_status() -> dict[str, Any]:
        """Stage, step, losses, speed, curves, time left, and whether the run is done or failed."""
        return asdict(status)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def get_metrics() -> Response:
        """The same figures for Prometheus, and the process's memory and the GPU's."""
        return Response(exposition(registry), media_type=CONTENT_TYPE)

    return app


class StatusServer:
    """Serves a Status from a thread until :meth:`close`.

    Raises:
        SettingsError: the port is taken.
    """

    def __init__(self, status: Status, host: str, port: int) -> None:
        try:
            self._socket = listening_socket(host, port)
        except OSError as error:
            raise SettingsError(
                f"--status-port {port} on {host} cannot be opened ({error.strerror}); choose another"
            ) from None
        self._server = uvicorn.Server(uvicorn.Config(build_app(status), log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="status", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
