from pathlib import Path

import pytest

from latentforge.core.settings import SettingsError, load_settings
from latentforge.inference.settings import Settings


def test_settings_come_from_the_environment_and_options_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "7001")
    monkeypatch.setenv("CHECKPOINT_RUN", "")
    monkeypatch.setenv("CHECKPOINTS_DIR", "/volume")
    settings = load_settings(Settings, port=None, host="0.0.0.0")
    assert (settings.port, settings.host) == (7001, "0.0.0.0")
    assert settings.checkpoint_run is None
    assert settings.checkpoints_dir == Path("/volume")
    assert load_settings(Settings, port=7002).port == 7002


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "70000", "PORT is '70000': .*65535"),
        ("POLL_SECONDS", "0", "POLL_SECONDS is '0': .*greater than 0"),
        ("DEVICE", "tpu", "DEVICE is 'tpu': .*'auto', 'cpu' or 'cuda'"),
        ("MAX_CONCURRENT", "many", "MAX_CONCURRENT is 'many': .*integer"),
    ],
)
def test_a_wrong_value_names_itself_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        load_settings(Settings)
