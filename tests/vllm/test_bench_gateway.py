import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gateway.report import BARS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]


def test_a_quick_benchmark_measures_every_figure_and_writes_them_down(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gateway", "--quick", "--no-litellm", "--results", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_gateway_*.json")
    result = json.loads(path.read_text())
    rows = {row["id"]: row for row in result["rows"]}
    assert rows.keys() >= BARS.keys()
    assert all(row["value"] > 0 for row in rows.values())
    # The rivals computed the same.
    assert result["measured"]["agreement"]["same_most_probable_id"] > 0.95
    assert rows["wire_bytes"]["ratio"] > 9
    assert rows["wire_bytes_zstd"]["value"] < rows["wire_bytes"]["value"]
    assert all(row_id in run.stdout for row_id in BARS)
