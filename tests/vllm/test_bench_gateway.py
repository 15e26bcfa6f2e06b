import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway.__main__ import GatewayBenchResults
from benchmarks.gateway.report import BARS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]


def test_a_quick_benchmark_measures_every_figure_and_writes_them_down(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gateway", "--quick", "--no-litellm", "--results", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_gateway_*.json")
    found = GatewayBenchResults.read(path)
    results: dict[str, Any] = found.by_id
    assert results.keys() >= BARS.keys()
    assert all(result.value > 0 for id_, result in results.items() if id_ != "faults")
    assert results["faults"].value == 0
    # vLLM and the gateway computed the same.
    assert found.measured["agreement"]["same_most_probable_id"] > 0.95
    assert results["wire_bytes"].ratio > 9
    assert results["wire_bytes_zstd"].value < results["wire_bytes"].value
    assert all(id_ in run.stdout for id_ in BARS)
