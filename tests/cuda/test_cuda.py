"""What a GPU computes is what the CPU computes: scoring, training and writing, each in float32."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.settings import GatewaySettings
from latentforge.model.finite import finite_logits
from latentforge.snapshots.snapshot import load_snapshot
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.cli.main import app
from latentforge.trainer.results import StudentResult

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "models" / "stdlib-teacher"
STUDENT = ROOT / "models" / "stdlib-student"


def scored_on(device: str, sequences: list[np.ndarray]) -> list[SparseRows]:
    settings = GatewaySettings(teacher_device=device, teacher_dtype="float32")
    backend = TransformersBackend(settings, str(TEACHER), "EMBEDDED_TEACHER_PATH", hub=False)

    async def score() -> list[SparseRows]:
        await backend.load()
        try:
            return await backend.score(sequences, 20)
        finally:
            await backend.close()

    return asyncio.run(score())


def test_the_teacher_gives_the_same_rows() -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 4096, size).astype(np.uint32) for size in (300, 17, 2)]
    for cpu, cuda in zip(*(scored_on(device, sequences) for device in ("cpu", "cuda")), strict=True):
        np.testing.assert_allclose(cuda.realised_logprobs, cpu.realised_logprobs, atol=1e-3)
        np.testing.assert_allclose(cuda.logprobs, cpu.logprobs, atol=1e-3)
        np.testing.assert_allclose(cuda.tail_mass, cpu.tail_mass, atol=1e-4)


def test_the_shipped_student_makes_of_its_golden_text_what_it_does_on_a_cpu() -> None:
    (place,) = list_checkpoints(STUDENT)
    golden = read_manifest(place).golden
    # Loading compares what it draws there, step by step, with reading it at once.
    snapshot = load_snapshot(place, torch.device("cuda"))
    logprobs = finite_logits(snapshot.model, golden.token_ids).log_softmax(1).cpu()
    found = logprobs.gather(1, torch.tensor(golden.token_ids)[:, None])[:, 0]
    np.testing.assert_allclose(found, golden.logprobs, atol=0.05)


@pytest.mark.slow
def test_training_goes_the_same_way_and_its_checkpoint_is_served_by_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    sources = sorted(Path(json.__file__).parents[1].glob("[a-c]*.py"))
    data.write_text("".join(json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n" for path in sources))
    for name, folder in (("RUNS_DIR", "runs"), ("CHECKPOINTS_DIR", "checkpoints")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("TOKENIZER_PATH", str(TEACHER))
    curves = []
    for device in ("cpu", "cuda"):
        options = ["--recipe", "smoke", "--data", str(data), "--run", device, "--targets", "text"]
        changes = ["--set", f'device="{device}"', "--set", "student.weights.kd=0.0"]
        done = CliRunner().invoke(app, ["run", *options, *changes])
        assert done.exit_code == 0, done.output
        curves.append([point.ce for point in StudentResult.read(tmp_path / "runs" / device / "student.json").curve])
    assert curves[1] == pytest.approx(curves[0], abs=0.02)
    assert curves[1][-1] < curves[1][0]
    newest = list_checkpoints(tmp_path / "checkpoints" / "cuda")[-1]
    # Loading has the checkpoint read its golden text on the CPU.
    assert load_snapshot(newest, torch.device("cpu")).manifest.step == 20
