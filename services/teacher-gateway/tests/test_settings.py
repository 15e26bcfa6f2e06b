from pathlib import Path
from typing import Any

import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.gateway.settings import GatewaySettings, shown_url


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
        (
            "TEACHER_BACKEND",
            "openai",
            "'embedded', 'transformers', 'vllm-local', 'vllm-remote', 'venice' or 'openai-compatible'",
        ),
        ("TEACHER_DTYPE", "int8", "float32"),
        ("TEACHER_DEVICE", "tpu", "cuda"),
        ("GATEWAY_PORT", "70000", "65535"),
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


@pytest.mark.parametrize(
    "url",
    [
        "memcached://:SECRETPW@host",
        "redi://:SECRETPW@host/0",
        "SECRETPW",
        "sqlite://",
        # Passwords with characters that end a URL's authority: what looks like the host is a part of them.
        "redis://:se#SECRETPW@127.0.0.1:6379/0",
        "redis://:x/SECRETPW@127.0.0.1:6379/0",
        "redis://:x?SECRETPW@127.0.0.1:6379/0",
        "redis://:x@SECRETPW/y@127.0.0.1:6379/0",
        "redis://:x@SECRETPW?y@127.0.0.1:6379/0",
        "redis://:x@SECRETPW#y@127.0.0.1:6379/0",
        "redis://:x@SECRETPW PW@127.0.0.1:6379/0",
        "redis://[SECRETPW",
        "redis://:SECRETPW@127.0.0.1:notaport/0",
        "redis://:SECRETPW@127.0.0.1:99999/0",
        "redis://:SECRETPW@127.0.0.1:6379/abc",
        "redis://:SECRETPW@/0",
        "redis+cluster://:SECRETPW@127.0.0.1:6379/1",
        "sqlite+cluster://:SECRETPW@127.0.0.1:6379",
    ],
)
def test_a_malformed_cache_url_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CACHE_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings(GatewaySettings)
    message = str(caught.value)
    assert message.startswith("CACHE_URL: not a store's URL")
    assert "redis://host:6379/0" in message
    assert "secretpw" not in message.lower()
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://redis:6379",
        "rediss://user:pa%2Fss@cache.example.com/3?ssl_cert_reqs=none",
        "redis://:p@ss!w%C3%B6rd@[::1]:6379/0",
        "redis://localhost/",
        "redis+cluster://user:pass@cache:6379",
        "rediss+cluster://[::1]:6379/0?ssl_cert_reqs=none",
        "sqlite:////tmp/a b.sqlite",
        "none",
    ],
)
def test_cache_urls_of_every_form_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CACHE_URL", url)
    assert load_settings(GatewaySettings).cache_url.get_secret_value() == url


def test_secrets_are_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "redis://:hunter2@host/0")
    shown: Any = repr(load_settings(GatewaySettings, venice_api_key="hunter2", vllm_remote_api_key="hunter2"))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.venice.ai/api/v1", "https://api.venice.ai/api/v1"),
        ("redis://user:hunter2@host:6379/0", "redis://host:6379/0"),
        ("redis://user:hun@ter2@[::1]:6379", "redis://[::1]:6379"),
        ("redis+cluster://user:hunter2@host:6379", "redis+cluster://host:6379"),
        ("rediss+cluster://:x@hunter2/y@host", "rediss+cluster://(hidden)"),
        ("https://host/v1?key=hunter2", "https://host/v1"),
        ("redis://:x@hunter2/y@host", "redis://(hidden)"),
        ("http://user:hun/ter2@host/v1", "http://(hidden)"),
        ("hunter2", "(hidden)"),
        ("hunter2://host:port:", "(hidden)"),
    ],
)
def test_of_a_url_only_what_is_certainly_no_secret_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
