import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.drafter.plan import QUICK
from benchmarks.drafter.report import DrafterBenchResults

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

_TEACHER = Path("models/stdlib-teacher")


def test_a_quick_benchmark_measures_what_is_asked_for_and_writes_it_down(tmp_path: Path) -> None:
    """The shipped pair, and ngram beside it."""
    command = [sys.executable, "-m", "benchmarks.drafter", "--quick", "--dtype", "float32", "--results", str(tmp_path)]
    command += ["--model", str(_TEACHER), "--checkpoint", "student=models/stdlib-student", "--baselines", "ngram"]
    # Texts are too short to find out what pays.
    command += ["--least-confidence", "0"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("bench_drafter_*.json")
    found = DrafterBenchResults.read(path)
    results: dict[str, Any] = found.by_id
    assert results["identical"].value == results["identical_ngram"].value == 0, found.notes
    # The student was trained for this teacher; nothing in short texts stands there a second time.
    assert results["mean_accepted"].value > 1.3
    assert results["mean_accepted"].value > results["mean_accepted_ngram"].value >= 1
    assert results["draft_cost"].value > results["draft_cost_ngram"].value > 0
    assert results["swaps"].value == results["swaps_bad_used"].value == 0
    assert results["pass_9"].value > 0
    assert results["speed_1"].ratio > 0
    assert results["speed_1_vs_ngram"].ratio == pytest.approx(results["speed_1"].ratio / results["speed_1_ngram"].ratio)
    # At T = 0.8 so few texts may not differ; the same texts must not either.
    assert 0 < results["sampled"].value <= 1
    sampled = found.measured["sampled"]
    assert 0 < sampled["accepted"] < sampled["drafted"]
    assert sampled["samples"] == QUICK.samples * QUICK.sampled_prompts
    for domain in ("documentation", "chat", "python"):
        of = found.measured["mean_accepted"][domain]
        assert of["drafted"][0] <= of["passes"]
        assert all(a <= r <= d for a, r, d in zip(of["accepted"], of["reached"], of["drafted"], strict=True))
    assert all(result.id in run.stdout for result in found.results)
