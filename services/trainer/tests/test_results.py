import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import AutoencoderResult, CurvePoint, StudentResult, read_progress

STUDENT = StudentResult(
    steps=4,
    tokens=256,
    seconds=1.5,
    curve=[CurvePoint(step=0, ce=6.1, kd=3.2), CurvePoint(step=4, ce=0.1 + 0.2, kd=1e-5)],
    unigram_ce=5.0,
    held_out_tokens=62,
    targets="text",
    checkpoints=["run/step-00000004"],
)


def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path) -> None:
    STUDENT.write(tmp_path / "student.json")
    assert StudentResult.read(tmp_path / "student.json") == STUDENT
    written = json.loads((tmp_path / "student.json").read_text())
    assert written["format_version"] == 1
    # What does not apply is not there.
    assert set(written["curve"][0]) == {"step", "ce", "kd"}
    assert not {"teacher", "cache", "generated"} & set(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"other": 1}, "other is not a known field"),
    ],
)
def test_another_version_or_content_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "student.json"
    path.write_text(json.dumps(STUDENT.model_dump() | change))
    with pytest.raises(TrainerError, match=rf"{path} is not a StudentResult of this version: {message}.*--fresh"):
        StudentResult.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"evaluation\.json cannot be read .*not that far"):
        AutoencoderResult.read(tmp_path / "evaluation.json")
    with pytest.raises(TrainerError, match=r"metrics\.jsonl cannot be read"):
        read_progress(tmp_path)


def test_progress_keeps_a_line_s_figures_by_name(tmp_path: Path) -> None:
    line = {"stage": "student", "step": 3, "kind": "train", "time": 1.5, "loss": 2.5, "tok_per_s": 100.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (point,) = read_progress(tmp_path)
    assert (point.stage, point.step, point.kind) == ("student", 3, "train")
    assert point.figures == {"loss": 2.5, "tok_per_s": 100.0}
    (tmp_path / "metrics.jsonl").write_bytes(b'{"stage": "stu\n\xff\x00\n' + json.dumps(line).encode() + b'\n{"st')
    assert read_progress(tmp_path) == [point]


def test_reading_results_loads_no_torch() -> None:
    code = "import sys, latentforge.trainer.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
