"""``TEACHER_BACKEND=vllm-remote make train-student``, from packed data to a published student."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from latentforge.trainer.data.corpus import source_files, stdlib_root
from tools.demo.settings import ROOT

from .conftest import VOCAB_SIZE, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_DOCUMENTS = 40
_SHORT = 4000


def run(command: list[str], environment: dict[str, str]) -> str:
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_a_student_learns_from_vllm_and_is_published(vllm: VllmServer, model_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {
        "TOKENIZER_PATH": str(model_folder),
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "CACHE_URL": f"sqlite:///{tmp_path}/cache.sqlite",
        "GATEWAY_PORT": str(port),
        "TEACHER_BACKEND": "vllm-remote",
        "VLLM_REMOTE_URL": vllm.url,
        "RECIPE": "smoke",
        "RUN": "vllm",
        # As wide as the teacher's rows, whose ids go beyond the tokenizer's.
        "SET": f"vocab_size={VOCAB_SIZE}",
        "DATA": str(tmp_path / "packed"),
        "OMP_NUM_THREADS": "1",
    }
    texts = [f.text for f in source_files(stdlib_root(), "train") if len(f.text) < _SHORT][:_DOCUMENTS]
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packing = ["pack", str(tmp_path / "small.jsonl"), "--out", environment["DATA"], "--sequence-length", "128"]
    run([".venv/bin/trainer", *packing, "--k", "8"], environment)
    run(["make", "train-ae"], environment)
    output = run(["make", "train-student", "STEPS=2"], environment)
    assert "published vllm/step-00000002" in output
    assert (tmp_path / "checkpoints/vllm/step-00000002/manifest.json").is_file()
    assert run(["make", "check-api"], environment).count("ok") >= 3
