import json
from pathlib import Path

from latentforge.core.results import JsonlWriter, result_row, write_results


def test_lines_are_there_at_once_and_a_second_writer_appends(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write(step=1, ce=2.5)
        assert json.loads(path.read_text()) == {"step": 1, "ce": 2.5}
    with JsonlWriter(path) as writer:
        writer.write(step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_ratio_above_one_is_better_for_us() -> None:
    assert result_row("tokens_per_s", 300.0, "1/s", rival="other", rival_value=100.0)["ratio"] == 3.0
    assert result_row("bytes", 10.0, "B", rival="other", rival_value=90.0, smaller_is_better=True)["ratio"] == 9.0
    assert result_row("alone", 1.0, "1")["ratio"] is None


def test_results_say_how_they_were_made(tmp_path: Path) -> None:
    path = write_results(
        tmp_path, "bench", command="make bench", device="cpu", seed=3, rows=[result_row("x", 1.0, "s")]
    )
    record = json.loads(path.read_text())
    assert path.name.startswith("bench_")
    assert record.keys() == {"name", "command", "commit", "device", "date", "seed", "rows"}
