import json
from contextlib import closing
from pathlib import Path

from latentforge.trainer.run.events import Event
from latentforge.trainer.run.sinks.metrics_file import MetricsFile


def test_lines_are_there_at_once_and_a_second_writer_appends(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    with closing(MetricsFile(path)) as writer:
        writer.write(step=1, ce=2.5)
        assert json.loads(path.read_text()) == {"step": 1, "ce": 2.5}
    with closing(MetricsFile(path)) as writer:
        writer.write(step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_figures_that_json_has_no_word_for_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsFile(path)) as writer:
        writer.take(Event("held_out", "student", 2, 4, {"ce": float("nan"), "kd": float("inf"), "mse": 0.5}))
    (line,) = path.read_text().splitlines()
    assert json.loads(line) | {"time": 0} == {"stage": "student", "step": 2, "kind": "held_out", "time": 0, "mse": 0.5}
