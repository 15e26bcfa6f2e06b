import builtins
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from latentforge.trainer.cli.watch import duration
from latentforge.trainer.run.lock import RunLock
from latentforge.trainer.run.sinks.live import write_status
from latentforge.trainer.run.status import Status

Invoke = Any
# Of the first two runs in a picture.
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@pytest.fixture
def runs(invoke: Invoke, corpus: Path, known_teacher: Any) -> tuple[str, str]:
    """Two whole runs."""
    common = ("--recipe", "tiny", "--data", corpus, "--gateway", f"127.0.0.1:{known_teacher.port}")
    for seed, name in enumerate(("one", "two")):
        result = invoke("run", *common, "--run", name, "--set", f"seed={seed}")
        assert result.exit_code == 0, result.output
    return "one", "two"


def test_runs_are_looked_at_and_drawn(invoke: Invoke, runs: tuple[str, str], tmp_path: Path) -> None:
    said = json.loads(invoke("status", "one", "--json").stdout)
    assert (said["run"], said["state"], said["stage"]) == ("one", "finished", "finished")
    assert (said["step"], said["of"], said["checkpoints"]) == (12, 12, 3)
    assert (said["last_save"]["name"], said["last_publish"]["name"]) == ("student/step-00000012", "one/step-00000012")
    assert {"ce", "kd"} <= said["losses"].keys() & said["held_out"].keys()
    assert 0 <= said["last_publish"]["age"] <= said["last_save"]["age"] + 60
    assert said["run_bytes"] > sum(p.stat().st_size for p in (tmp_path / "runs" / "one").rglob("*.safetensors"))
    assert said["checkpoint_bytes"] > 0
    shown = invoke("status", "one").stdout
    for part in ("finished 12/12 (100%)", "one/step-00000012, ", "held-out", f"process {os.getpid()}", "MB"):
        assert part in shown, shown
    held_out = said["held_out"]
    words = " ".join(shown.replace("│", " ").split())
    assert f"drafts {held_out['greedy_accepted']:.2f} of 8 tokens accepted, greedy" in words
    assert f"{held_out['acceptance_low']:.1%} to {held_out['acceptance']:.1%} of one token at temperature 1" in words

    out = tmp_path / "pictures" / "both.png"
    result = invoke("plot", *runs, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: student of one, two" in result.output
    picture = (matplotlib.image.imread(out)[..., :3] * 255).round().astype(int)
    assert picture.shape == (800, 2000, 3)
    # In every panel both runs; but in the last one they may have waited for the same time, under one line.
    for panel in range(8):
        row, column = 400 * (panel // 4), 500 * (panel % 4)
        pixels = picture[row : row + 400, column : column + 500]
        for colour in (BLUE, ORANGE) if panel < 7 else (ORANGE,):
            assert (np.abs(pixels - colour).sum(-1) < 60).sum() > 20, (panel, colour)
    assert invoke("plot", "one", "--stage", "autoencoder", "--out", out).exit_code == 0
    result = invoke("plot", "one", "--stage", "token-level", "--out", out)
    assert (result.exit_code, "no figures of the stage token-level" in result.output) == (1, True)

    # As a run of an earlier version left it, and a kill its last line.
    (tmp_path / "runs" / "one" / "status.json").unlink()
    with (tmp_path / "runs" / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stu')
    said = json.loads(invoke("status", "one", "--json").stdout)
    assert (said["state"], said["stage"], said["step"], said["of"]) == ("finished", "student", 12, None)
    assert invoke("plot", "one", "--out", out).exit_code == 0


def test_a_run_that_does_not_exist_is_refused_with_those_that_do(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("status", "demo")
    assert (result.exit_code, f"{tmp_path}/runs has none" in result.output) == (1, True)
    for i, name in enumerate(("old", "new")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (i + 1, i + 1))
    for command in ("status", "plot"):
        result = invoke(command, "demo")
        assert result.exit_code == 1
        assert f"there is no run 'demo'; {tmp_path}/runs has new, old" in result.output
        assert invoke(command, "../runs").exit_code == 1
    said = json.loads(invoke("status", "new", "--json").stdout)
    assert (said["state"], said["stage"], said["last_save"], said["last_publish"]) == ("unknown", "data", None, None)
    result = invoke("plot", "new")
    assert (result.exit_code, "metrics.jsonl cannot be read" in result.output) == (1, True)
    assert invoke("plot", "new", "--stage", "x").exit_code == 2


def test_without_matplotlib_it_is_said_what_to_install(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "r").mkdir(parents=True)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = invoke("plot", "r")
    assert result.exit_code == 1
    assert "pip install 'latentforge-trainer[plot]'" in result.output


def test_a_run_is_seen_alive_killed_and_stopped(
    environment: dict[str, str], invoke: Invoke, corpus: Path, tmp_path: Path, known_teacher: Any
) -> None:
    arguments = ["run", "--recipe", "tiny", "--data", str(corpus), "--gateway", f"127.0.0.1:{known_teacher.port}"]
    command = [sys.executable, "-m", "latentforge.trainer", *arguments, "--set", "student.optim.steps=5000"]
    for end, state in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped")):
        with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            said: dict[str, Any] = {}
            while (said.get("stage"), said.get("pid")) != ("student", process.pid) or not said["last_save"]:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
                if (tmp_path / "runs" / "tiny").is_dir():
                    said = json.loads(invoke("status", "tiny", "--json").stdout)
            assert (said["state"], said["of"]) == ("running", 5000)
            process.send_signal(end)
            # Before anybody has asked how it ended, too.
            while process.pid and json.loads(invoke("status", "tiny", "--json").stdout)["state"] == "running":
                assert time.monotonic() < deadline
                time.sleep(0.1)
        said = json.loads(invoke("status", "tiny", "--json").stdout)
        assert (said["state"], said["eta"], said["run_eta"], said["error"]) == (state, None, None, None)


def test_a_process_that_has_just_begun_is_not_taken_for_the_one_before(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    write_status(folder, Status("r", "student", 3, 9, eta=1.0, run_eta=2.0, error="no teacher", waiting_for="-"))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"time": status["time"] - 60, "pid": 1}))
    assert json.loads(invoke("status", "r", "--json").stdout)["state"] == "failed"
    lock = RunLock(folder)
    said = json.loads(invoke("status", "r", "--json").stdout)
    assert (said["state"], said["error"], said["waiting_for"], said["step"]) == ("running", None, None, 3)
    lock.release()
    write_status(folder, Status("r", "student", 3, 9, error="no teacher"))
    time.sleep(0.01)
    lock = RunLock(folder)
    said = json.loads(invoke("status", "r", "--json").stdout)
    assert (said["state"], said["stage"], said["error"]) == ("running", "starting", None)
    assert (said["eta"], said["run_eta"]) == (None, None)
    write_status(folder, Status("r", stage="autoencoder", step=4, of=9, eta=61.0, run_eta=3600.0))
    words = " ".join(invoke("status", "r").stdout.replace("│", "").split())
    assert "left in the stage 1 min 1 s" in words
    assert "left in the run 1 h 0 min" in words
    assert (said["pid"], said["age"] < 60) == (os.getpid(), True)
    (folder / "status.json").unlink()
    assert json.loads(invoke("status", "r", "--json").stdout)["state"] == "running"
    lock.release()


def test_what_is_trained_alone_says_why_it_ended(invoke: Invoke, corpus: Path, tmp_path: Path) -> None:
    common = ("--recipe", "tiny", "--data", corpus, "--run", "r", "--set", "autoencoder.optim.lr=1e20")
    assert invoke("train", "autoencoder", *common).exit_code == 1
    said = json.loads(invoke("status", "r", "--json").stdout)
    assert said["state"] == "failed"
    assert "finite" in said["error"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (12.2 * 86400, "12 d 4 h")]
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
