from pathlib import Path
from typing import Any

import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.gateway.settings import GatewaySettings, without_password


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_need_no_environment() -> None:
    settings = load_settings(GatewaySettings)
    assert settings.teacher_backend == "embedded"
    assert settings.embedded_teacher_path == Path("models/stdlib-teacher")
    assert settings.cache_url.get_secret_value() == "sqlite:///cache/kd_cache.sqlite"


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in GatewaySettings.model_fields.values())


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TEACHER_BACKEND", "openai", "'embedded', 'transformers', 'vllm-local', 'vllm-remote' or 'venice'"),
        ("TEACHER_DTYPE", "int8", "float32"),
        ("TEACHER_DEVICE", "tpu", "cuda"),
        ("GATEWAY_PORT", "70000", "65535"),
        ("CACHE_URL", "memcached://host", "redis://host:6379/0"),
        ("CACHE_URL", "sqlite://", "sqlite:///relative"),
        ("MAX_BATCH_TOKENS", "0", "greater than or equal to 1"),
        ("TEACHER_QUANTIZATION", "awq", "none"),
    ],
)
def test_a_wrong_value_names_setting_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings(GatewaySettings)
    message = str(caught.value)
    assert name in message
    assert value in message
    assert allowed in message


def test_secrets_are_in_no_error_and_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "redi://:hunter2@host/0")
    with pytest.raises(SettingsError) as caught:
        load_settings(GatewaySettings)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("CACHE_URL", "redis://:hunter2@host/0")
    shown: Any = repr(load_settings(GatewaySettings, venice_api_key="hunter2", vllm_remote_api_key="hunter2"))
    assert "hunter2" not in shown
    assert without_password("redis://user:hunter2@host:6379/0") == "redis://host:6379/0"
