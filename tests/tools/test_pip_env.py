import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tools.pip_env import PipEnv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An environment whose Python is ours, with the command httpx."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "httpx"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_the_wanted_versions_are_ready(folder: Path) -> None:
    env = PipEnv("httpx", folder, {"httpx[http2]": version("httpx"), "anyio": version("anyio")})
    assert env.is_ready()


@pytest.mark.parametrize("versions", [{"httpx": "0"}, {"httpx": version("httpx"), "anyio": "0"}])
def test_another_version_is_not_ready(folder: Path, versions: dict[str, str]) -> None:
    assert not PipEnv("httpx", folder, versions).is_ready()


def test_an_environment_that_was_left_half_made_is_not_ready(folder: Path) -> None:
    env = PipEnv("httpx", folder, {"httpx": version("httpx")})
    env.command.unlink()
    assert not env.is_ready()
    assert not PipEnv("nothing", folder, {"httpx": version("httpx")}).is_ready()


def test_one_that_is_ready_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PipEnv("httpx", folder, {"httpx": version("httpx")}).make()
    assert capsys.readouterr().out == f"{folder.name} has httpx {version('httpx')}\n"
    assert (folder / "bin" / "httpx").exists()
