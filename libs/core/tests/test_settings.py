import os
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


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setattr("latentforge.core.settings._SECRETS", folder)
    return folder


def test_a_secret_may_be_a_file_which_the_environment_beats(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "example_key").write_text("from-a-file\n")
    assert load_settings(Example).example_key.get_secret_value() == "from-a-file"
    monkeypatch.setenv("EXAMPLE_KEY", "from-a-variable")
    assert load_settings(Example).example_key.get_secret_value() == "from-a-variable"


def test_an_empty_secret_or_variable_is_unset(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "")
    (secrets / "example_key").write_text("from-a-file")
    assert load_settings(Example).example_key.get_secret_value() == "from-a-file"
    (secrets / "example_key").write_text("\n")
    assert load_settings(Example).example_key.get_secret_value() == "unset-key"


def test_a_secret_that_is_wrong_is_not_shown(secrets: Path) -> None:
    (secrets / "example_key").write_text("abc")
    with pytest.raises(SettingsError, match=r"EXAMPLE_KEY: Value should have at least 4") as caught:
        load_settings(Example)
    assert "abc" not in str(caught.value)


def test_a_secret_that_cannot_be_read_names_setting_file_and_user(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "example_key").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"^EXAMPLE_KEY: .*secrets/example_key cannot be read: it is not UTF-8$"):
        load_settings(Example)

    # Root reads every file, so the refusal is made.
    def refuse(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match=rf"cannot be read: Permission denied for user {os.getuid()}$"):
        load_settings(Example)


def test_a_secret_that_nobody_reads_is_named(secrets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (secrets / "example_kye").write_text("forgotten")
    (secrets / "example_tls.pem").write_text("a certificate")
    load_settings(Owner)
    assert caplog.messages == ["no setting is called EXAMPLE_KYE (EXAMPLE_KEY?)"]
