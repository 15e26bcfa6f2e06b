from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("command", [["run"], ["train", "student"], ["train", "autoencoder"], ["train", "token-level"]])
def test_a_dry_run_says_what_a_run_takes_and_leaves_nothing(invoke: Any, tmp_path: Path, command: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    # No gateway listens.
    result = invoke(*command, "--recipe", "tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    for word in ("parameters", "memory", "measured", "tokens/s", "time", "disk"):
        assert f"  {word}" in result.output or word == "tokens/s", result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_needs_neither_the_device_nor_the_tokenizer(invoke: Any) -> None:
    sizes = ("vocab_size=300", "data.eos_id=0", "data.pad_id=299", "device='cuda:7'")
    sets = [part for value in sizes for part in ("--set", value)]
    result = invoke("train", "student", "--recipe", "tiny", "--tokenizer", "/nowhere", "--dry-run", *sets)
    assert result.exit_code == 0, result.output
    assert "time           unknown: no step was made, since there is no such device here" in result.output


def test_a_dry_run_refuses_the_ids_that_a_run_refuses(invoke: Any) -> None:
    arguments = ("run", "--recipe", "tiny", "--eos-id", "1", "--pad-id", "1")
    dry, real = invoke(*arguments, "--dry-run"), invoke(*arguments)
    assert "eos_id and pad_id are both 1; give --pad-id" in real.output.replace("\n", " ")
    assert (dry.exit_code, dry.output) == (real.exit_code, real.output)
