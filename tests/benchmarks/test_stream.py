import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.trainer.__main__ import TrainerBenchResults, app
from benchmarks.trainer.stream import _resident, _write


def test_the_corpus_has_its_size_and_one_long_line(tmp_path: Path) -> None:
    num_bytes = _write(tmp_path / "d.jsonl", 3_000_000, 1_000_000)
    texts = [json.loads(line)["text"] for line in (tmp_path / "d.jsonl").read_bytes().splitlines()]
    assert num_bytes == sum(len(text.encode()) for text in texts)
    assert 3_000_000 <= num_bytes < 4_500_000
    assert sum(len(text) >= 1_000_000 for text in texts) == 1
    assert len(set(texts)) == len(texts)


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    child = "import time; held = bytearray(b'x' * 60_000_000); print('there', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert 60_000_000 < _resident(process.pid) < 160_000_000
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    assert _resident(process.pid) == 0


@pytest.mark.slow
@pytest.mark.e2e
def test_a_quick_look_packs_and_compares(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["--quick", "--only", "stream", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("bench_trainer_*.json")
    found = TrainerBenchResults.read(path).by_id
    assert list(found) == ["stream", "stream_throughput"]
    assert found["stream"].value is not None
    assert 100 < found["stream"].value < 1500
    assert found["stream_throughput"].ratio is not None
