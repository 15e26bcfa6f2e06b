"""A run learns from one teacher: a gateway that comes back with another one ends it, whatever the gateway looks at."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.fingerprint import tokenizer_fingerprint
from latentforge.trainer.teacher.connection import TeacherChangedError, TeacherLink
from latentforge.trainer.teacher.rows import TeacherRows

SHIPPED = Path(__file__).parents[2] / "models" / "stdlib-teacher"


def answers(target: str) -> bool:
    with SyncTeacherClient(target, timeout=5, attempts=1) as client:
        try:
            client.teacher()
        except TeacherError:
            return False
    return True


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Starts a gateway over a teacher, at one address and with one cache, in place of the one before."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for process in running:
            # Not killed: rows are written behind the answer, and a gateway that is told to end writes them first.
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                process.kill()
        running.clear()

    def start(folder: Path) -> str:
        stop()
        settings = {
            "EMBEDDED_TEACHER_PATH": str(folder),
            "GATEWAY_PORT": str(port),
            "CACHE_URL": f"sqlite:///{tmp_path}/cache.sqlite",
            "OMP_NUM_THREADS": "1",
        }
        command = [str(Path(sys.executable).with_name("teacher-gateway")), "serve"]
        with (tmp_path / "gateway.log").open("ab") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | settings, stderr=log))
        target = f"127.0.0.1:{port}"
        for _ in range(1500):
            if answers(target):
                return target
            if running[0].poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError((tmp_path / "gateway.log").read_text())

    yield start
    stop()


@pytest.mark.slow
def test_a_gateway_that_comes_back_with_another_teacher_ends_what_learns_from_the_first(
    serve: Callable[[Path], str], tmp_path: Path
) -> None:
    other = tmp_path / "stdlib-teacher"
    shutil.copytree(SHIPPED, other)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    save_file(tensors | {name: tensors[name] * 1.5}, other / "model.safetensors", {"format": "pt"})
    one, two = torch.arange(5, 40), torch.arange(6, 50)

    def logprobs(rows: TeacherRows, sequence: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        (answer,) = rows.take(rows.ask([sequence]))
        assert isinstance(answer, SparseRows)
        return answer.logprobs.copy()

    target = serve(SHIPPED)
    with TeacherLink(target) as link:
        first = link.teacher(tokenizer_fingerprint(SHIPPED), None, 4).revision
        rows = TeacherRows(link, 4, "float32")
        known = logprobs(rows, one)
        serve(other)
        with SyncTeacherClient(target) as client:
            second = client.teacher().revision
            assert second != first
            foreign = client.score(two.tolist(), 4, "float32", "arrays", second).logprobs.copy()
        with pytest.raises(TeacherChangedError) as caught:
            rows.take(rows.ask([two]))
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert rows.cache.sequences == 1
        serve(SHIPPED)
        # Nothing of the second is in the first one's answers, though both had the one cache.
        assert not np.allclose(logprobs(rows, two), foreign, atol=1e-2)
        assert logprobs(rows, one).tolist() == known.tolist()
        assert rows.cache.hits == 1
