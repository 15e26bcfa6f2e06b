import json
from contextlib import closing
from pathlib import Path

from latentforge.trainer.run.sinks.metrics_file import MetricsFile


def test_lines_are_there_at_once_and_a_second_writer_appends(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    with closing(MetricsFile(path)) as writer:
        writer.write(step=1, ce=2.5)
        assert json.loads(path.read_text()) == {"step": 1, "ce": 2.5}
    with closing(MetricsFile(path)) as writer:
        writer.write(step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
