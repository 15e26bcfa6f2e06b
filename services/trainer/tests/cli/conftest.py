from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.trainer.cli.main import app

Invoke = Any


@pytest.fixture
def environment(tmp_path: Path, tokenizer_folder: Path, recipe_file: Path) -> dict[str, str]:
    return {
        "RUNS_DIR": str(tmp_path / "runs"),
        "CHECKPOINTS_DIR": str(tmp_path / "checkpoints"),
        "TOKENIZER_PATH": str(tokenizer_folder),
        "RECIPES_DIR": str(recipe_file.parent),
        "TRAINER_GATEWAY_PATIENCE_SECONDS": "0",
        "GATEWAY_TARGET": "127.0.0.1:9",
        "TRAINER_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def invoke(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
