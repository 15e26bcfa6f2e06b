from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from latentforge.core.settings import ServiceSettings, SettingsError, load_settings


class Example(ServiceSettings):
    example_port: int = Field(50051, ge=1, le=65535)
    example_key: SecretStr = Field(SecretStr("unset-key"), min_length=4)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_options_beat_the_environment_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(Example).example_port == 50051
    Path(".env").write_text("EXAMPLE_PORT=1\nSOMEBODY_ELSES=x\n")
    assert load_settings(Example).example_port == 1
    monkeypatch.setenv("EXAMPLE_PORT", "2")
    assert load_settings(Example, example_port=None).example_port == 2
    assert load_settings(Example, example_port=3).example_port == 3


class Owner(Example):
    prefixes = ("EXAMPLE_",)
    others = frozenset({"EXAMPLE_OF_ANOTHER"})


def test_a_variable_that_nobody_reads_is_named_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Path(".env").write_text("EXAMPLE_PROT=1\nexample_key=long-enough\n# EXAMPLE_COMMENT=2\n")
    monkeypatch.setenv("EXAMPLE_OF_ANOTHER", "x")
    monkeypatch.setenv("EXAMPLE_ZZZ", "secret")
    monkeypatch.setenv("SOMEBODY_ELSES", "x")
    load_settings(Owner)
    assert caplog.messages == ["no setting is called EXAMPLE_PROT (EXAMPLE_PORT?), EXAMPLE_ZZZ"]
    caplog.clear()
    load_settings(Example)
    assert caplog.messages == []


def test_a_wrong_value_names_field_value_and_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_PORT", "70000")
    with pytest.raises(SettingsError, match=r"EXAMPLE_PORT is '70000': .*less than or equal to 65535"):
        load_settings(Example)


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "abc")
    with pytest.raises(SettingsError) as caught:
        load_settings(Example)
    assert str(caught.value) == "EXAMPLE_KEY: Value should have at least 4 items after validation, not 3"
    assert "abc" not in str(caught.value)
