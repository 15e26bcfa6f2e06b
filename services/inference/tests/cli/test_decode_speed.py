from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentforge.inference.cli.decode_speed import BenchPaces, Pace, measure, read_prompts
from latentforge.model.sampling import SamplingParams
from latentforge.snapshots.snapshot import load_snapshot

Publish = Callable[..., Path]


def test_both_models_write_exactly_the_tokens_asked_for(publish: Publish) -> None:
    snapshot = load_snapshot(publish(1), torch.device("cpu"))
    runs = 0

    def count() -> None:
        nonlocal runs
        runs += 1

    result = measure(snapshot, ["a", "def f("], 10, 3, SamplingParams(seed=0), count)
    assert runs == 12
    assert [pace.tokens for pace in result.ours] == [pace.tokens for pace in result.baseline] == [20, 20, 20]
    assert [pace.steps for pace in result.ours] == [6, 6, 6]
    assert [pace.steps for pace in result.baseline] == [20, 20, 20]


def test_results_hold_medians_and_the_bounds_of_the_paired_ratio() -> None:
    result = BenchPaces(
        ours=[Pace(80, 10, 1.0), Pace(80, 10, 2.0), Pace(80, 10, 4.0)],
        baseline=[Pace(80, 80, 2.0), Pace(80, 80, 2.0), Pace(80, 80, 2.0)],
    )
    decode, steps, compression = result.results()
    assert (decode.value, decode.baseline_value, decode.ratio) == (40, 40, 1)
    assert (decode.low, decode.high) == (0.5, 2)
    assert (steps.value, steps.low, steps.high) == (5, 2.5, 10)
    assert compression.value == 8


def test_prompts_are_lines_and_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \n")
    assert read_prompts(path) == ["one", "  two "]
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
