import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentforge.core.manifest import list_checkpoints
from latentforge.trainer.cli import app

Invoke = Any


@pytest.fixture
def environment(tmp_path: Path, tokenizer_folder: Path, recipe_file: Path) -> dict[str, str]:
    return {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(tokenizer_folder),
        "RECIPES_DIR": str(recipe_file.parent),
        "TEACHER_PATIENCE_SECONDS": "0",
        "GATEWAY_TARGET": "127.0.0.1:9",
        "TRAINER_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def invoke(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_pack_then_train_each_model(invoke: Invoke, corpus: Path, tmp_path: Path, known_teacher: Any) -> None:
    packed = tmp_path / "packed"
    assert invoke("pack", corpus, "--out", packed, "--sequence-length", 32, "--k", 4).exit_code == 0
    common = ("--recipe", "tiny", "--data", packed)
    result = invoke("train", "autoencoder", *common, "--d", 8, "--epochs", 0.1, "--batch-size", 8, "--run", "ae")
    assert result.exit_code == 0, result.output
    assert "autoencoder K=4 D=8: " in result.output
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
    assert "student.weights.kd = 1.0, now it is 0.5" in result.output
    assert invoke(*student, "--run", "st", "--kd-w", 0.5, "--fresh").exit_code == 0


def test_data_stdlib_writes_jsonl(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "held.jsonl"
    assert invoke("data", "stdlib", "--split", "held-out", "--out", out).exit_code == 0
    assert "text" in json.loads(out.read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data", "stdlib", "--out", "x", "--split", "test"], 2, "'test' is not train or held-out"),
        (["train", "autoencoder", "--steps", "1", "--epochs", "1"], 2, "not both"),
        (["run", "--recipe", "tiny", "--keep-serving"], 2, "--status-port"),
        (["run", "--recipe", "none"], 1, "error: there is no recipe 'none'"),
        (["run", "--recipe", "tiny", "--gateway", "nowhere"], 2, "GATEWAY_TARGET is 'nowhere'"),
        (["run", "--recipe", "tiny"], 1, "no teacher-gateway answers at 127.0.0.1:9"),
        (["run", "--recipe", "tiny", "--tokenizer", "/nowhere"], 1, "TOKENIZER_PATH: /nowhere has no tokenizer.json"),
        (["run", "--recipe", "tiny", "--set", "student.optim.lr=fast"], 1, "student.optim.lr is 'fast'"),
        (["pack", "nothing.jsonl", "--out", "x"], 1, "nothing.jsonl is no file"),
    ],
)
def test_errors_are_one_clear_message_and_the_right_code(
    invoke: Invoke, arguments: list[str], code: int, message: str
) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_help_of_every_command_shows(invoke: Invoke) -> None:
    for command in ([], ["pack"], ["run"], ["data", "stdlib"], ["train", "autoencoder"], ["train", "student"]):
        result = invoke(*command, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(
    environment: dict[str, str], invoke: Invoke, corpus: Path, tmp_path: Path, known_teacher: Any
) -> None:
    steps = 100
    arguments = ["run", "--recipe", "tiny", "--data", str(corpus), "--gateway", f"127.0.0.1:{known_teacher.port}"]
    arguments += ["--set", f"student.optim.steps={steps}"]
    command = [sys.executable, "-m", "latentforge.trainer", *arguments]
    env = {**os.environ, **environment}
    checkpoints = tmp_path / "checkpoints"
    with subprocess.Popen([*command, "--run", "cut"], env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list_checkpoints(checkpoints / "cut"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Run the same command to go on" in errors
    assert "Traceback" not in errors
    (saved,) = (tmp_path / "runs" / "cut" / "state" / "student").glob("step-*")
    step = int(saved.name[5:])
    assert 0 < step < steps
    assert list_checkpoints(checkpoints / "cut")[-1].name == saved.name
    for name in ("cut", "whole"):
        result = invoke(*arguments, "--run", name)
        assert result.exit_code == 0, result.output
    ours, theirs = (
        load_file(checkpoints / name / f"step-{steps:08d}" / "student" / "model.safetensors")
        for name in ("cut", "whole")
    )
    assert all(value.equal(theirs[name]) for name, value in ours.items())
