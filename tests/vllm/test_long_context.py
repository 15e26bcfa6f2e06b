from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.long_context.__main__ import app
from benchmarks.long_context.report import LongContextResults

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]


def test_the_twin_in_vllm_is_measured_behind_the_same_contexts(tmp_path: Path) -> None:
    command = ["--quick", "--only", "kv_2x128", "--repeats", "2", "--vllm", "--results", str(tmp_path)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("long_context_*.json")
    found = LongContextResults.read(path)
    (theirs,) = (each for each in found.figures if each.model == "vllm")
    assert len(theirs.paces) == 2
    assert min(theirs.paces) > 0
    assert "bfloat16" in theirs.name
    # A key and a value of 3 layers, 1 key head, 64 dimensions, in 2 bytes.
    assert theirs.cache_bytes_per_token == 3 * 2 * 64 * 2
    ratio = found.by_id["kv_2x128_vllm"]
    assert (ratio.baseline, ratio.baseline_value) == (theirs.name, theirs.pace)
