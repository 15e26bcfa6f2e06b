"""The real packages where they are installed; skipped where they are not (they are extras of the trainer)."""

import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.manifest import TextSample
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.events import Event, StagePace
from latentforge.trainer.run.sinks.tracker import Tracker, tracked

SECRET = "local-0123456789abcdef0123456789abcdef01234567"


class Recorded:
    """A tracked run that keeps what it gets, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.got: list[tuple[int | None, dict[str, Any]]] = []
        self.error = error
        self.finished = False

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.error:
            raise self.error
        self.got.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


def events(first: int = 1) -> list[Event]:
    pace = StagePace(tokens=8, mean=4.0, recent=4.0, eta=1.0, run_eta=1.0, teacher_wait=0.5)
    return [
        Event("started", "student", first - 1, 9),
        Event("train", "student", first, 9, {"ce": 2.0}, pace),
        Event("held_out", "student", first, 9, {"ce": 2.5}),
        Event("published", "student", first, 9, place="r/step", samples=(TextSample(prompt="a", text="b"),)),
    ]


def test_figures_go_by_stage_with_numbers_that_never_fall() -> None:
    run = Recorded()
    sink = Tracker(run, reported=5)
    for event in (*events(7), *events(2)):
        sink.take(event)
    assert [step for step, _ in run.got] == [6, 7, 8, 9, 10, 11]
    assert run.got[0][1] == {
        "student/train/ce": 2.0,
        "student/train/tok_per_s": 4.0,
        "student/train/teacher_wait_seconds": 0.5,
        "student/step": 7,
    }
    assert run.got[1][1] == {"student/held_out/ce": 2.5, "student/step": 7}
    assert run.got[2][1] == {"student/sample/0": "a\n---\nb", "student/step": 7}


def test_a_tracker_that_fails_is_left_alone_and_its_words_are_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    run = Recorded(ValueError(f"bad key {SECRET}"))
    sink = Tracker(run, 0)
    with caplog.at_level(logging.WARNING):
        for event in events():
            sink.take(event)
    assert caplog.text.count("takes no more figures (ValueError)") == 1
    assert SECRET not in caplog.text


def test_a_package_that_is_missing_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(
            TrainerError, match=r"'wandb', which is not installed: pip install 'latentforge-trainer\[wandb\]'"
        ),
        tracked("wandb", "p", "r", tmp_path, {}),
    ):
        pass
    with tracked("none", "p", "r", tmp_path, {}) as sinks:
        assert sinks == ()
    assert list(tmp_path.iterdir()) == []


def track(name: Any, folder: Path, reported: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("{}\n" * reported)
    with tracked(name, "latentforge", "r", folder, {"student": {"lr": 0.1}}) as sinks:
        for event in events(reported + 1):
            sinks[0].take(event)


def offline_items(folder: Path, identity: str) -> list[tuple[str, Any]]:
    """Keys and values of a run's histories: its records are protobuf without compression, one after another."""
    files = sorted(folder.glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    assert b"latentforge" in content
    # An item: the key, then field 16 with the value as JSON, and their lengths before them.
    found = re.finditer(rb"\x12.(?P<key>_step|student/[a-z0-9_/]+)\x82\x01(?P<length>.)", content, re.DOTALL)
    values = ((m["key"].decode(), content[m.end() : m.end() + m["length"][0]]) for m in found)
    return [(key, json.loads(value)) for key, value in values]


def steps_of(items: list[tuple[str, Any]]) -> set[int]:
    return {value for key, value in items if key == "_step"}


def test_wandb_offline_keeps_both_halves_of_a_run_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'latentforge-trainer[wandb]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    for reported in (0, 2):
        # Offline, wandb names its folders by the second.
        time.sleep(1.1 * (reported > 0))
        track("wandb", tmp_path / "r", reported)
    identity = json.loads((tmp_path / "r" / "tracker.json").read_text())["wandb"]
    # Its own process may still write.
    deadline = time.monotonic() + 20
    while len(steps_of(items := offline_items(tmp_path / "r" / "wandb", identity))) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [value for key, value in items if key == "student/train/ce"][:1] == [2.0]
    assert ("student/sample/0", "a\n---\nb") in items
    assert steps_of(items) == {1, 2, 3, 4, 5}
    assert {value for key, value in items if key == "student/step"} == {1, 3}
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert out == ""
    # What a run writes has no key in it either.
    assert not any(SECRET.encode() in p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file())


_TRACKIO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_tracker import track
track("trackio", Path(sys.argv[1]) / "r", int(sys.argv[3]))
"""


def test_trackio_resumes_the_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed (pip install 'latentforge-trainer[trackio]')")
    # Where it writes is decided when it is imported.
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for reported in (0, 2):
        command = [sys.executable, "-c", _TRACKIO, str(tmp_path), str(Path(__file__).parent), str(reported)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == ""
    with sqlite3.connect(tmp_path / "trackio" / "latentforge.db") as db:
        rows = db.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == {"r"}
    found = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [step for step, metrics in found if "student/train/ce" in metrics] == [1, 3]
    assert {metrics["student/step"] for _, metrics in found if "student/step" in metrics} == {1, 3}
