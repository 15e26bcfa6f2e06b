"""The shipped student drafts for the shipped teacher in a real vLLM, whose texts stay what they were."""

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.manifest import MANIFEST, ManifestDraft
from latentforge.core.publishing import publish_checkpoint
from latentforge.gateway.settings import GatewaySettings
from latentforge.model.golden import golden_of
from latentforge.model.io import save_pretrained
from latentforge.snapshots.snapshot import load_snapshot
from tools.demo.settings import ROOT
from tools.processes import ChildError
from tools.serve_vllm_drafted import MULTIPROCESS, drafted_command
from tools.vllm_env import VENV_PYTHON

from .conftest import VllmServer, free_port, running_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

TEACHER, STUDENT = ROOT / "models" / "stdlib-teacher", ROOT / "models" / "stdlib-student"
PROMPTS = (
    "def main():\n",
    "class Parser:\n    def __init__(self",
    "import os\nimport sys\n\n",
    "# Copyright (c)",
    '"""Utilities for',
    "def test_parse(self):\n        self.assert",
    "    for line in lines:\n",
    "try:\n    import",
)
TOKENS = 96
_WAIT_SECONDS = 300.0


class DraftedServer(VllmServer):
    """vLLM with the drafter in it, and its figures in a folder that is new with every start."""

    def __init__(self, settings: GatewaySettings, log: Path, environment: dict[str, str]) -> None:
        super().__init__(settings, log)
        self._environment = environment

    def start(self) -> None:
        figures = self._log.with_suffix(".figures")
        shutil.rmtree(figures, ignore_errors=True)
        figures.mkdir()
        command = drafted_command(self._settings, 8, ["--enforce-eager"])
        self.start_child(command, {**self._environment, MULTIPROCESS: str(figures)})

    def figure(self, name: str) -> float:
        """The sum of a metric over its labels, from vLLM's own page; 0 where it is not there."""
        page = httpx.get(f"{self.url}/metrics", timeout=60).text
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE)
        return sum(map(float, values))


@contextmanager
def drafted_vllm(model: Path, log: Path, checkpoints: Path) -> Iterator[DraftedServer]:
    settings = GatewaySettings(
        vllm_local_url=f"http://127.0.0.1:{free_port()}",
        vllm_local_model=str(model),
        vllm_max_model_len=512,
        vllm_python=VENV_PYTHON,
        teacher_dtype="float32",
    )
    environment = {
        "LATENTFORGE_CHECKPOINTS": str(checkpoints),
        "LATENTFORGE_FALLBACK_RUN": str(STUDENT),
        "LATENTFORGE_POLL_SECONDS": "0.2",
        # On a machine that others use too, measured speeds would leave few drafts.
        "LATENTFORGE_LEAST_CONFIDENCE": "0.2",
        "LATENTFORGE_ACCEPTANCE_WINDOW": "100",
    }
    server = DraftedServer(settings, log, environment)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        # One that refused has ended by itself.
        with suppress(ProcessLookupError):
            server.kill()


def texts_of(server: VllmServer, model: Path, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Greedy continuations, all asked for at once."""

    def ask(prompt: str) -> str:
        body: dict[str, Any] = {"model": model.name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=600)
        assert answer.status_code == httpx.codes.OK, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the teacher writes without drafts."""
    log = tmp_path_factory.mktemp("plain") / "vllm.log"
    with running_vllm(TEACHER, log, teacher_dtype="float32") as server:
        return texts_of(server, TEACHER)


def published(checkpoints: Path, step: int, *, damaged: bool = False) -> None:
    """The shipped student as another step of its run, as a trainer publishes it: it is there at once."""
    place = checkpoints / STUDENT.name / f"step-{step:08d}"
    beside = place.with_name(f".{place.name}.tmp")
    shutil.copytree(list_checkpoints(STUDENT)[-1], beside)
    manifest = json.loads((beside / MANIFEST).read_text())
    (beside / MANIFEST).write_text(json.dumps(manifest | {"step": step}))
    if damaged:
        weights = beside / "student" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1000:] = bytes(1000)
        weights.write_bytes(content)
    beside.rename(place)


def published_without_use(checkpoints: Path, step: int) -> None:
    """A student that passes every check and writes one token for ever, as a bad run's might."""
    snapshot = load_snapshot(list_checkpoints(STUDENT)[-1], torch.device("cpu"))
    model, manifest = snapshot.model, snapshot.manifest
    with torch.no_grad():
        model.student.bias[1000] = 50.0
    golden = golden_of(model, manifest.golden.text, list(manifest.golden.token_ids))
    kept = ("chunk_size", "latent_size", "tokenizer_fingerprint", "bos_id", "end_ids", "teacher", "metrics")
    draft = ManifestDraft(**{name: getattr(manifest, name) for name in kept}, golden=golden)

    def write(folder: Path) -> None:
        save_pretrained(model.autoencoder, folder / "autoencoder")
        save_pretrained(model.student, folder / "student")
        shutil.copytree(snapshot.place / "tokenizer", folder / "tokenizer")

    publish_checkpoint(checkpoints, STUDENT.name, step, draft, write)


def until(server: DraftedServer, name: str, value: float) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while (found := server.figure(name)) != value:
        assert time.monotonic() < deadline, f"{name} is {found} and not {value}"
        time.sleep(0.2)


def test_texts_are_the_teachers_own_through_drafts_swaps_and_a_kill(expected: list[str], tmp_path: Path) -> None:
    checkpoints, log = tmp_path / "checkpoints", tmp_path / "vllm.log"
    with drafted_vllm(TEACHER, log, checkpoints) as server:
        assert texts_of(server, TEACHER) == expected
        accepted = server.figure("latentforge_drafter_accepted_tokens_total")
        # vLLM counts the last drafts of texts too, whose fate the drafter does not see.
        assert 0 < accepted <= server.figure("vllm:spec_decode_num_accepted_tokens_total")
        assert server.figure("latentforge_drafter_checkpoint_step") == 330
        assert server.figure("latentforge_drafter_failures_total") == 0

        # A newer version and a bad one, while it writes.
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(lambda: [texts_of(server, TEACHER) for _ in range(3)])
            published(checkpoints, 331)
            until(server, "latentforge_drafter_checkpoint_step", 331)
            published(checkpoints, 332, damaged=True)
            until(server, "latentforge_drafter_quarantines_total", 1)
            assert writing.result() == [expected] * 3
        assert server.figure("latentforge_drafter_swaps_total") == 2
        assert texts_of(server, TEACHER) == expected
        assert server.figure("latentforge_drafter_checkpoint_step") == 331
        assert server.figure("latentforge_drafter_accepted_tokens_total") > accepted

        # One that only its acceptance tells.
        published_without_use(checkpoints, 333)
        deadline = time.monotonic() + _WAIT_SECONDS
        while server.figure("latentforge_drafter_rollbacks_total") == 0:
            assert time.monotonic() < deadline
            assert texts_of(server, TEACHER) == expected
        assert server.figure("latentforge_drafter_checkpoint_step") == 331

        server.kill()
        server.start()
        server.wait()
        assert texts_of(server, TEACHER) == expected
        # From what lies in the folder: the newest good one, and the two bad ones quarantined again.
        assert server.figure("latentforge_drafter_checkpoint_step") == 331
        assert server.figure("latentforge_drafter_quarantines_total") == 2
        assert server.figure("latentforge_drafter_accepted_tokens_total") > 0
    assert "step-00000332: " in log.read_text()


def test_a_model_of_another_tokenizer_is_not_served_with_drafts(model_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    with pytest.raises(ChildError), drafted_vllm(model_folder, log, tmp_path):
        pass
    text = log.read_text()
    assert "was trained with another tokenizer" in text
    assert "set LATENTFORGE_CHECKPOINTS and LATENTFORGE_RUN to a student of this teacher" in text
