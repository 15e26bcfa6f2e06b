from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.trainer.cli.main import app

Invoke = Any


@pytest.fixture
def invoke(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
