"""Inference servers that are asked: the shipped student's, and one of its token-level twin."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.gateway.servers import cpu_seconds, free_port, wait_for_http
from benchmarks.inference.models import SHIPPED
from tools.processes import Child, Children

_START_SECONDS = 120.0
# A tenth of a second after it is published a checkpoint is seen.
_POLL_SECONDS = "0.1"


@dataclass(frozen=True)
class InferenceServer:
    """A running server that serves something."""

    child: Child
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """Of all its threads since it started."""
        return cpu_seconds(self.child.pid)

    def num_swaps(self) -> int:
        """How often it has changed what it serves."""
        status = httpx.get(f"{self.url}/status", timeout=10, trust_env=False).raise_for_status().json()
        return len([swap for swap in status["swaps"] if swap["from"] is not None])


class InferenceServers:
    """Starts servers, and stops them when the stack is left.

    Args:
        stack: that they live in.
        logs: folder for what they print.
        device: where they compute.
    """

    def __init__(self, stack: ExitStack, logs: Path, device: str) -> None:
        self._stack = stack
        self._logs = logs
        self._device = device

    def start_student(self, checkpoints: Path, name: str = "student") -> InferenceServer:
        """Serves what stands in a checkpoints folder, and the shipped student while there is nothing."""
        command = [str(Path(sys.executable).with_name("inference")), "serve"]
        return self._start(name, command, checkpoints)

    def start_token_level(self, checkpoints: Path) -> InferenceServer:
        """Serves the shipped student's token-level twin, with the same code."""
        return self._start(
            "token-level", [sys.executable, "-m", "benchmarks.inference.token_level_server"], checkpoints
        )

    def _start(self, name: str, command: list[str], checkpoints: Path) -> InferenceServer:
        port = free_port()
        environment = {
            "INFERENCE_HOST": "127.0.0.1",
            "INFERENCE_PORT": str(port),
            "INFERENCE_DEVICE": self._device,
            "INFERENCE_POLL_SECONDS": _POLL_SECONDS,
            "CHECKPOINTS_DIR": str(checkpoints),
            "CHECKPOINT_RUN": "",
            "FALLBACK_RUN": str(SHIPPED.absolute()),
            "LOG_LEVEL": "WARNING",
        }
        children = self._stack.enter_context(Children(self._logs, env=environment))
        server = InferenceServer(children.start(name, command), port)
        wait_for_http(children, f"{server.url}/ready", f"starting the {name} server", _START_SECONDS)
        return server
