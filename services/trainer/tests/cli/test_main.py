import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.packed import PackedData
from latentforge.trainer.run.lock import RunLock

Invoke = Any


@pytest.fixture
def one_id_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """Its end-of-text and its pad are one id, as SmolLM2's are."""
    folder = tmp_path / "one-id"
    shutil.copytree(tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["pack", "{corpus}", "--out", "{tmp}/packed", "--sequence-length", 32, "--k", 4],
        ["train", "autoencoder", "--recipe", "tiny", "--data", "{corpus}", "--run", "one"],
        ["run", "--recipe", "tiny", "--data", "{corpus}", "--run", "one"],
        ["train", "student", "--recipe", "tiny", "--data", "{corpus}", "--run", "one"],
        ["train", "token-level", "--recipe", "tiny", "--data", "{corpus}", "--run", "one"],
    ],
)
def test_every_command_that_packs_can_be_told_the_ids(
    invoke: Invoke, one_id_tokenizer: Path, corpus: Path, tmp_path: Path, command: list[Any]
) -> None:
    filled = [str(part).format(corpus=corpus, tmp=tmp_path) for part in command]
    arguments = [*filled, "--tokenizer", one_id_tokenizer]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "eos_id and pad_id are both 3; give --pad-id, or set data.pad_id in the recipe" in result.output
    told = invoke(*arguments, "--eos-id", 0, "--pad-id", 1)
    if command[0] == "run":
        # It asks for its teacher before it packs anything.
        assert "no teacher-gateway answers" in told.output
        return
    # A student needs an autoencoder too, but its data are packed by then.
    folder = tmp_path / "packed" if command[0] == "pack" else tmp_path / "runs" / "one" / "data" / "train"
    meta = PackedData(folder).meta
    assert (meta.eos_id, meta.pad_id) == (0, 1), told.output


def test_only_the_teachers_evaluation_is_told_ids(invoke: Invoke, one_id_tokenizer: Path, corpus: Path) -> None:
    arguments = ["evaluate", "teacher", corpus, "--tokenizer", one_id_tokenizer, "--sequence-length", 32]
    assert "eos_id and pad_id are both 3; give --pad-id" in invoke(*arguments).output
    # Its data are packed by then.
    assert "no teacher-gateway answers" in invoke(*arguments, "--pad-id", 1).output
    assert "--eos-id, --pad-id and --bos go with 'teacher' only" in invoke("evaluate", "newest", "--pad-id", 1).output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data", "stdlib", "--out", "x", "--split", "test"], 2, "'test' is not train or held-out"),
        (["data", "packages", "--out", "x", "--split", "test"], 2, "'test' is not train or held-out"),
        (["data", "packages", "--out", "x", "--max-mb", "0"], 2, "0 is not above 0"),
        (["tokenizer", "--data", "nothing.jsonl", "--out", "x"], 1, "nothing.jsonl cannot be read"),
        (["tokenizer", "--data", "nothing.jsonl", "--out", "x", "--vocab-size", "9"], 1, "vocab_size is 9"),
        (["train", "autoencoder", "--steps", "1", "--epochs", "1"], 2, "not both"),
        (["run", "--recipe", "tiny", "--keep-serving"], 2, "--status-port"),
        (["run", "--recipe", "none"], 2, "error: there is no recipe 'none'"),
        (["run", "--recipe", "tiny", "--gateway", "nowhere"], 2, "GATEWAY_TARGET is 'nowhere'"),
        (["run", "--recipe", "tiny"], 1, "no teacher-gateway answers at 127.0.0.1:9"),
        (["run", "--recipe", "tiny", "--tokenizer", "/nowhere"], 1, "TOKENIZER_PATH: /nowhere has no tokenizer.json"),
        (["run", "--recipe", "tiny", "--set", "student.optim.lr=fast"], 2, "student.optim.lr is 'fast'"),
        (["pack", "nothing.jsonl", "--out", "x"], 1, "nothing.jsonl cannot be read"),
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
    commands = "", "pack", "run", "tokenizer", "data stdlib", "data packages", "train autoencoder", "train student"
    for command in commands:
        result = invoke(*command.split(), "--help")
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
    assert "Run the same command to resume" in errors
    assert "Traceback" not in errors
    saved = max((tmp_path / "runs" / "cut" / "state" / "student").glob("step-*"))
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


def test_a_run_that_another_trainer_has_is_refused_and_its_leftovers_are_swept(
    invoke: Invoke, corpus: Path, tmp_path: Path
) -> None:
    arguments = ("train", "autoencoder", "--recipe", "tiny", "--data", corpus, "--run", "r")
    folder = tmp_path / "runs" / "r"
    left = folder / "state" / "autoencoder" / f".step-00000004~{2**22 + 1}@{socket.gethostname()}"
    left.mkdir(parents=True)
    lock = RunLock(folder)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert f"error: {folder} is in use: process {os.getpid()} on" in result.output
    assert left.exists()
    lock.release()
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert not left.exists()
    assert not (folder / "lock").exists()
