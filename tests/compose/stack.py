"""Stacks in a real Docker engine, for tests: up, asked, hurt, and down again."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tools.demo.settings import ROOT

# Containers may start together on few cores that others use too.
_HEALING_SECONDS = 300.0


class ComposeError(AssertionError):
    """A command of compose failed; it says what was printed."""


def compose(*arguments: str, **environment: str) -> str:
    """What ``docker compose`` prints.

    Raises:
        ComposeError: it failed.
    """
    run = subprocess.run(
        ["docker", "compose", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise ComposeError(f"docker compose {' '.join(arguments)}:\n{run.stdout}\n{run.stderr}")
    return run.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], what: str, seconds: float = _HEALING_SECONDS) -> None:
    """Waits until a condition holds; one that cannot be asked, as of a container that is starting, does not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (ComposeError, OSError):
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.25)


class Stack:
    """One project of compose."""

    def __init__(self, name: str, files: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment = {
            "COMPOSE_PROJECT_NAME": f"latentforge-{name}-{os.getpid()}",
            "IMAGE_TAG": "test",
            **environment,
        }
        self._files = tuple(argument for file in files for argument in ("-f", file))

    def __call__(self, *arguments: str) -> str:
        return compose(*self._files, *arguments, **self.environment)

    def kill(self, service: str) -> None:
        """``kill -9`` of all that a container runs; its init ends with it, and Docker sees a container that died.

        `docker kill` would not do: what is killed by hand is not started again.
        """
        container = self("ps", "--quiet", service).strip()
        subprocess.run(["docker", "exec", container, "sh", "-c", "kill -9 -1"], capture_output=True, check=False)

    def inspected(self) -> list[dict[str, Any]]:
        """``docker inspect`` of every container."""
        containers = self("ps", "--quiet").split()
        said = subprocess.run(["docker", "inspect", *containers], capture_output=True, text=True, check=True).stdout
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def restarts(self, service: str) -> int:
        (count,) = (
            int(container["RestartCount"])
            for container in self.inspected()
            if container["Config"]["Labels"]["com.docker.compose.service"] == service
        )
        return count


@contextmanager
def running(name: str, *files: str, **environment: str) -> Iterator[Stack]:
    """A stack that is up and healthy, built of this checkout; what it leaves is removed.

    Args:
        name: part of the project's name.
        files: compose files; without any, the default stack's.
        environment: what .env or the shell would give it.
    """
    stack = Stack(name, files, environment)
    try:
        try:
            stack("up", "--build", "--wait", "--quiet-pull")
        except ComposeError as error:
            raise ComposeError(f"{error}\n{stack('logs', '--tail', '40')}") from None
        yield stack
    finally:
        stack("down", "--volumes", "--timeout", "20")
