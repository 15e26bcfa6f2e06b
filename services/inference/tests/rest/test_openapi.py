"""The description against the server, by requests that are made of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_no_failure(api: Any) -> None:
    program = Path(sys.executable).parent / "schemathesis"
    command = [str(program), "--config-file", str(_ROOT / "schemathesis.toml"), "run"]
    options = ["--checks", "all", "--max-examples", "10", "--seed", "1", "--no-color", "--request-timeout", "60"]
    asked = subprocess.run(
        [*command, f"{api.url}/openapi.json", *options], capture_output=True, text=True, timeout=590, check=False
    )
    assert asked.returncode == 0, asked.stdout[-10_000:]
    assert " 0 selected" not in asked.stdout
