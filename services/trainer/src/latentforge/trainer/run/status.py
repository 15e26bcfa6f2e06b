"""The trainer's status over HTTP: what an orchestrator's health check and a curious person read."""

import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI

from latentforge.core.settings import SettingsError
from latentforge.core.sockets import listening_socket
from latentforge.trainer.run.curve import Point


@dataclass
class Status:
    """Where a run is; written by the run, read by whoever asks.

    Attributes:
        run: its name.
        stage: data, autoencoder, student or finished.
        step, of: in the stage; tokens while data is packed.
        losses: the newest figures.
        eta: seconds left in the stage; None while unknown.
        tokens_per_s: over the newest steps, validations between them included; None before the second step.
        teacher_wait_seconds: how long this process has waited for its teacher; None where it has none.
        waiting_for: what is waited for just now, for how long and at most how long; None while nothing is.
        train, held_out: the stage's curves, a bounded number of points with ``step`` and figures by name.
        done: the run is finished.
        error: why it failed, or None.
    """

    run: str
    stage: str = "starting"
    step: int = 0
    of: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    eta: float | None = None
    tokens_per_s: float | None = None
    teacher_wait_seconds: float | None = None
    waiting_for: str | None = None
    train: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    done: bool = False
    error: str | None = None

    def wait_for(self, line: str | None) -> None:
        """Notes what is waited for; None ends it."""
        self.waiting_for = line


def build_app(status: Status) -> FastAPI:
    app = FastAPI(title="LatentForge trainer", docs_url="/docs")

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
