import re

import pytest
from pydantic_settings import BaseSettings

from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from tools.demo.settings import ROOT, DemoSettings
from tools.gateway import GatewayChoice

_ALL: tuple[type[BaseSettings], ...] = (
    GatewaySettings,
    TrainerSettings,
    InferenceSettings,
    DemoSettings,
    GatewayChoice,
)
_DOCUMENTED = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


@pytest.mark.parametrize("settings", _ALL)
def test_every_setting_is_documented(settings: type[BaseSettings]) -> None:
    assert {name.upper() for name in settings.model_fields} - _DOCUMENTED == set()


def test_nothing_is_documented_that_nobody_reads() -> None:
    read = {name.upper() for settings in _ALL for name in settings.model_fields}
    for path in ROOT.glob("docker-compose*.yml"):
        text = path.read_text()
        read |= set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    assert _DOCUMENTED - read == set()
