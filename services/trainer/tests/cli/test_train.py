import shutil
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.trainer.results import AutoencoderResult

Invoke = Any


def test_pack_then_train_each_model(invoke: Invoke, corpus: Path, tmp_path: Path, known_teacher: Any) -> None:
    packed = tmp_path / "packed"
    assert invoke("pack", corpus, "--out", packed, "--sequence-length", 32, "--k", 4).exit_code == 0
    common = ("--recipe", "tiny", "--data", packed)
    result = invoke("train", "autoencoder", *common, "--d", 8, "--epochs", 0.1, "--batch-size", 8, "--run", "ae")
    assert result.exit_code == 0, result.output
    assert "autoencoder K=4 D=8: " in result.output
    untrained = AutoencoderResult.read(tmp_path / "runs" / "ae" / "autoencoder" / "evaluation.json").untrained
    assert untrained is not None
    assert f"(before its first step {untrained.token_exact:.2%}, under noise " in result.output
    gateway = f"127.0.0.1:{known_teacher.port}"
    ae = tmp_path / "runs" / "ae" / "autoencoder"
    student = ("train", "student", *common, "--gateway", gateway, "--ae-checkpoint", ae, "--steps", 3)
    result = invoke(*student, "--run", "st")
    assert result.exit_code == 0, result.output
    assert "st/step-00000003" in result.output
    result = invoke(*student, "--run", "other", "--d", 16)
    assert result.exit_code == 1
    assert "latent_size (D) 8, this run has 16" in result.output
    result = invoke(*student, "--run", "st", "--kd-w", 0.5)
    assert "student.weights.kd = 1.0, now it is 0.5, and it is finished" in result.output
    longer = invoke(*student, "--run", "st", "--kd-w", 0.5, "--steps", 5)
    assert longer.exit_code == 0, longer.output
    assert "student.optim.steps: 3 -> 5 from step 3 on" in longer.output
    assert "st/step-00000005" in longer.output
    assert invoke(*student, "--run", "st", "--kd-w", 0.5, "--fresh").exit_code == 0


@pytest.mark.parametrize("command", [["run"], ["train", "student"]])
def test_fresh_removes_the_checkpoints_of_an_earlier_run(
    invoke: Invoke, corpus: Path, tmp_path: Path, known_teacher: Any, command: list[str]
) -> None:
    common = ("--recipe", "tiny", "--data", corpus, "--gateway", f"127.0.0.1:{known_teacher.port}", "--run", "r")
    assert invoke("run", *common).exit_code == 0
    (tmp_path / "runs" / "r" / "autoencoder").rename(tmp_path / "ae")
    shutil.rmtree(tmp_path / "runs" / "r")
    arguments = (*command, *common, *(("--ae-checkpoint", tmp_path / "ae") if command[0] == "train" else ()))
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "checkpoints of an earlier run" in " ".join(result.output.split())
    (first, *_) = list_checkpoints(tmp_path / "checkpoints" / "r")
    before = read_manifest(first).created
    result = invoke(*arguments, "--fresh")
    assert result.exit_code == 0, result.output
    assert read_manifest(first).created > before
