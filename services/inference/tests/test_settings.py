from pathlib import Path

import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.inference.settings import InferenceSettings


def test_settings_come_from_the_environment_and_options_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERENCE_PORT", "7001")
    monkeypatch.setenv("CHECKPOINT_RUN", "")
    monkeypatch.setenv("CHECKPOINTS_DIR", "/volume")
    settings = load_settings(InferenceSettings, inference_port=None, inference_host="0.0.0.0")
    assert (settings.inference_port, settings.inference_host) == (7001, "0.0.0.0")
    assert settings.checkpoint_run is None
    assert settings.checkpoints_dir == Path("/volume")
    assert load_settings(InferenceSettings, inference_port=7002).inference_port == 7002


def test_what_others_put_into_the_environment_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    # conda exports the first; the others are names that anybody's tools use.
    for name, value in {"HOST": "x86_64-conda-linux-gnu", "PORT": "tcp://10.0.0.1:80", "DEVICE": "/dev/sda"}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(InferenceSettings)
    assert (settings.inference_host, settings.inference_port, settings.inference_device) == ("127.0.0.1", 7860, "auto")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INFERENCE_PORT", "70000", "INFERENCE_PORT is '70000': .*65535"),
        ("INFERENCE_POLL_SECONDS", "0", "INFERENCE_POLL_SECONDS is '0': .*greater than 0"),
        ("INFERENCE_DEVICE", "tpu", "INFERENCE_DEVICE is 'tpu': use auto, cpu, cuda or cuda:N"),
        ("INFERENCE_SLOTS", "many", "INFERENCE_SLOTS is 'many': .*integer"),
    ],
)
def test_a_wrong_value_names_itself_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        load_settings(InferenceSettings)
