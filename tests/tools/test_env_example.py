import re
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.settings import ServiceSettings, load_settings
from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.vllm.settings import DrafterSettings
from tools import env_example
from tools.demo.settings import ROOT, DemoSettings
from tools.gateway import GatewayChoice

_ALL: tuple[type[ServiceSettings], ...] = (
    GatewaySettings,
    TrainerSettings,
    InferenceSettings,
    DrafterSettings,
    DemoSettings,
    GatewayChoice,
)
_SERVICES = (GatewaySettings, TrainerSettings, InferenceSettings, DrafterSettings)
_TEXT = (ROOT / ".env.example").read_text(encoding="utf-8")
_LINES = re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", _TEXT, re.MULTILINE)


def _comment_of(variable: str) -> str:
    """The comment before a variable, on one line."""
    before = _TEXT[: _TEXT.index(f"\n#{variable}=")].split("\n")
    comment: list[str] = []
    while before and before[-1].startswith("# "):
        comment.insert(0, before.pop()[2:])
    return " ".join(comment)


def test_it_is_what_the_settings_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert env_example.main(check=True) == 0, capsys.readouterr().err


def test_one_that_is_not_is_found_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / ".env.example"
    kept.write_text(_TEXT.replace("#TEACHER_BACKEND=embedded", "#TEACHER_BACKEND=venice"), encoding="utf-8")
    monkeypatch.setattr(env_example, "FILE", kept)
    assert env_example.main(check=True) == 1
    assert env_example.main(check=False) == 0
    assert kept.read_text(encoding="utf-8") == _TEXT


def test_every_variable_stands_there_once() -> None:
    names = [name for name, _ in _LINES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("settings", _ALL)
def test_every_setting_is_documented(settings: type[ServiceSettings]) -> None:
    names = {name for name, _ in _LINES}
    assert {field.upper() for field in settings.model_fields} - names == set()


@pytest.mark.parametrize("settings", _SERVICES)
def test_every_setting_of_a_service_has_its_description(settings: type[ServiceSettings]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description, f"{settings.__name__}.{name} has no description"
        assert field.description.removesuffix(".") in _comment_of(name.upper())


def test_nothing_is_documented_that_nobody_reads() -> None:
    read = {field.upper() for settings in _ALL for field in settings.model_fields}
    for path in ROOT.glob("docker-compose*.yml"):
        read |= set(re.findall(r"\$\{([A-Z0-9_]+)", path.read_text(encoding="utf-8")))
    assert {name for name, _ in _LINES} - read == set()


def test_all_that_the_compose_files_read_is_there() -> None:
    substituted = {
        name
        for path in ROOT.glob("docker-compose*.yml")
        for name in re.findall(r"\$\{([A-Z0-9_]+)", path.read_text(encoding="utf-8"))
    }
    assert substituted - {name for name, _ in _LINES} == set()


@pytest.mark.parametrize("settings", [*_SERVICES, DemoSettings])
def test_with_every_line_made_to_count_nothing_changes(
    settings: type[ServiceSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, _ in _LINES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    defaults = load_settings(settings)
    # Two services may have two defaults for one variable; the comment then says which is whose.
    differing = {name for name, _ in _LINES if "Default: " in _comment_of(name)}
    lines = [f"{name}={value}" for name, value in _LINES if name not in differing]
    (tmp_path / ".env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert _absolute(load_settings(settings)) == _absolute(defaults)


def _absolute(settings: ServiceSettings) -> dict[str, Any]:
    values = settings.model_dump()
    return {name: ROOT / value if isinstance(value, Path) else value for name, value in values.items()}


def test_a_dollar_in_single_quotes_is_a_dollar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"as in (VENICE_API_KEY='\S+')", _TEXT)
    monkeypatch.delenv("VENICE_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(example + "\n", encoding="utf-8")
    key = load_settings(GatewaySettings).venice_api_key
    assert key is not None
    assert key.get_secret_value() == "lit$eral"
