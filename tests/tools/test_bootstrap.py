import importlib.util

import pytest

from tools import bootstrap


def test_an_old_python_is_refused_with_its_version_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match="1"):
        bootstrap.check_python()
    assert "make setup PYTHON=" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_environments_is_refused_with_the_package_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(SystemExit, match="1"):
        bootstrap.check_python()
    message = capsys.readouterr().err
    assert f"no module {missing}" in message
    assert "apt-get install python3." in message
    assert "-venv" in message


def test_this_python_is_accepted() -> None:
    bootstrap.check_python()
