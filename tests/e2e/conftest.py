import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from latentforge.trainer.data.corpus import source_files, stdlib_root
from tools.demo.settings import ROOT

_DOCUMENTS = 120
_SHORT = 8000


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some short sources, so that packing takes no time."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    texts = [f.text for f in source_files(stdlib_root(), "train") if len(f.text) < _SHORT][:_DOCUMENTS]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@dataclass
class DemoProcess:
    """A demo in a process of its own, with its output in a file and an eye on what it starts."""

    folder: Path
    environment: dict[str, str]
    started: set[int] = field(default_factory=set)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        path = self.folder / "output.txt"
        return path.read_text(errors="replace") if path.is_file() else ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, **environment: object) -> None:
        variables = {name: str(value) for name, value in environment.items()}
        with (self.folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.demo"],
                cwd=ROOT,
                env={**os.environ, **self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def children(self) -> dict[str, int]:
        """The services that it runs at this moment: pid by program name."""
        found = {}
        try:
            pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return {}
        for pid in map(int, pids):
            self.started.add(pid)
            command = _command_of(pid)
            # Until it has become the service, it is the leash.
            if len(command) > 1 and not command[1].startswith("-"):
                found[Path(command[1]).name] = pid
        return found

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the demo ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{what} took too long:\n{self.output}"
            self.children()
            time.sleep(0.1)

    def wait(self, seconds: float = 600) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, self.output
            self.children()
            time.sleep(0.1)
        return code

    def left_over(self, seconds: float = 0) -> list[str]:
        """What it started and is still there after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (alive := [pid for pid in self.started if _command_of(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [" ".join(_command_of(pid)) for pid in alive]

    def end(self) -> None:
        if self._process is not None:
            self.children()
            self._process.kill()
            self._process.wait()
        for pid in self.started:
            if _command_of(pid):
                os.kill(pid, signal.SIGKILL)


def _command_of(pid: int) -> list[str]:
    """Program and arguments; empty for a process that is gone, or dead and not yet buried."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


@pytest.fixture
def demo(tmp_path: Path, small_data: Path) -> Iterator[DemoProcess]:
    """A demo of seconds that shares nothing with another."""
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    gateway, inference, status = (str(each.getsockname()[1]) for each in sockets)
    for each in sockets:
        each.close()
    process = DemoProcess(
        tmp_path,
        {
            "RECIPE": "smoke",
            "DATA": str(small_data),
            "DEMO_FOLDER": str(tmp_path),
            "DEMO_MIN_FREE_GB": "0.1",
            "DEMO_POLL_SECONDS": "0.2",
            "DEMO_BENCH_REPEATS": "1",
            "GATEWAY_PORT": gateway,
            "INFERENCE_PORT": inference,
            "STATUS_PORT": status,
            "INFERENCE_POLL_SECONDS": "0.1",
            # A proxy that answers nobody: what the demo asks is all on this machine.
            "http_proxy": "http://127.0.0.1:9",
        },
    )
    yield process
    process.end()
