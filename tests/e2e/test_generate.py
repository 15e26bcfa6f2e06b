"""make train-student on the teacher's own text: from Venice's API, played by a strict local server, and embedded."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.trainer.teacher.continuations import GeneratedStore
from tools.demo.settings import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TEACHER = ROOT / "models" / "stdlib-teacher"
BIN = Path(sys.executable).parent
_ASKED = "teacher.generate.held_out_prompts=2 teacher.generate.max_tokens=12 teacher.generate.n=2"


@dataclass
class Job:
    """One run's commands in an environment of its own."""

    folder: Path
    data: Path
    environment: dict[str, str]

    @property
    def generated(self) -> Path:
        return self.folder / "runs" / "e2e" / "generated"

    def prompts(self) -> list[int]:
        """The prompts whose continuations have arrived."""
        if not (self.generated / "continuations.sqlite").is_file():
            return []
        with closing(GeneratedStore(self.generated)) as store:
            return [number for number in range(20) if number in store]

    def digest(self, prompts: list[int]) -> str:
        """Of their continuations."""
        with closing(GeneratedStore(self.generated)) as store:
            return store.digest(prompts)

    def autoencoder(self) -> None:
        command = ["train", "autoencoder", "--recipe", "smoke", "--run", "e2e", "--data", str(self.data)]
        subprocess.run([BIN / "trainer", *command], cwd=ROOT, env=self.environment, check=True, capture_output=True)

    def start(self, target: str, **variables: str) -> subprocess.Popen[str]:
        given = {"RECIPE": "smoke", "RUN": "e2e", "DATA": str(self.data), "STEPS": "6", "SET": _ASKED} | variables
        return subprocess.Popen(
            # -o: the environment is as it is.
            ["make", "--no-print-directory", "-o", ".venv/.ready", target, *(f"{n}={v}" for n, v in given.items())],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def job(tmp_path: Path, small_data: Path) -> Job:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "CACHE_URL": "none",
        "GATEWAY_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    return Job(tmp_path, small_data, environment)


@pytest.fixture
def venice() -> Iterator[dict[str, str]]:
    """What to set to use the local server, as it says itself."""
    with subprocess.Popen(
        [sys.executable, "-m", "tools.venice_server", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(2)][-1]
        try:
            yield dict(word.split("=", 1) for word in said.split())
        finally:
            server.terminate()


def check_rows_are_the_teachers(job: Job) -> None:
    """Every stored row against the teacher's own forward pass over prompt and continuation."""
    model = Qwen3ForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    with closing(GeneratedStore(job.generated)) as store:
        continuations = [store.read(record) for record in store.records(job.prompts())]
    assert continuations
    for continuation in continuations:
        num_prompt_ids, rows = len(continuation.prompt_ids), continuation.rows
        ids = np.concatenate([continuation.prompt_ids, continuation.token_ids]).astype(np.int64)
        assert (rows.first_position, len(rows)) == (num_prompt_ids, len(continuation.token_ids))
        with torch.no_grad():
            logprobs = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
        expected = logprobs[num_prompt_ids - 1 : -1]
        realised = expected.gather(1, torch.from_numpy(ids[num_prompt_ids:])[:, None])[:, 0]
        assert np.allclose(rows.realised_logprobs, realised, atol=2e-3)
        for r, count in enumerate(rows.counts):
            given = expected[r, torch.from_numpy(rows.ids[r, :count].astype(np.int64))]
            assert np.allclose(rows.logprobs[r, :count], given, atol=2e-2)


def check_result(job: Job, output: str, backend: str, prompts: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((job.folder / "runs" / "e2e" / "student.json").read_text())
    assert result["targets"] == "generate"
    assert result["generated"]["prompts"] == len(job.prompts()) == prompts
    assert result["generated"]["continuations"] + result["generated"]["dropped"] == 2 * prompts
    assert result["teacher"]["backend"] == backend
    assert 0 < result["teacher"]["held_out_nll"] < result["curve"][0]["ce"]
    places = list_checkpoints(job.folder / "checkpoints" / "e2e")
    assert verify_checkpoint(places[-1]).teacher.backend == backend
    assert re.search(r"student: held-out continuations: CE [\d.]+ -> [\d.]+, KD", output), output
    return result


def test_venice_teaches_and_a_killed_collection_goes_on(job: Job, venice: dict[str, str]) -> None:
    job.environment |= venice
    job.autoencoder()
    killed = job.start("train-student-venice", PROMPTS="10")
    deadline = time.monotonic() + 300
    while len(job.prompts()) < 3:
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    left = job.prompts()
    assert 3 <= len(left) < 12
    digest = job.digest(left)
    again = job.start("train-student-venice", PROMPTS="10")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert job.digest(left) == digest
    check_result(job, output, "venice", 12)
    check_rows_are_the_teachers(job)
    changed = job.start("train-student-venice", PROMPTS="12")
    output = changed.communicate()[0]
    assert changed.returncode != 0
    assert "teacher.generate.prompts = 10, now it is 12" in output


def test_the_embedded_teacher_teaches_by_writing(job: Job) -> None:
    job.autoencoder()
    training = job.start("train-student", PROMPTS="6", TARGETS="generate")
    output = training.communicate()[0]
    assert training.returncode == 0, output
    assert check_result(job, output, "embedded", 8)["generated"]["dropped"] == 0
    check_rows_are_the_teachers(job)
