"""All services' settings beside each other: one .env serves them all."""

import re
from pathlib import Path

import pytest

from latentforge.core.settings import ServiceSettings, unknown_variables
from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.vllm.settings import DrafterSettings
from tools.demo.settings import ROOT, DemoSettings
from tools.gateway import GatewayChoice

_ALL: list[type[ServiceSettings]] = [
    GatewaySettings,
    TrainerSettings,
    InferenceSettings,
    DrafterSettings,
    DemoSettings,
    GatewayChoice,
]
_DOCUMENTED = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("settings", _ALL)
def test_nobody_is_warned_of_a_variable_that_another_service_reads(
    settings: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _DOCUMENTED:
        monkeypatch.setenv(name, "x")
    assert unknown_variables(settings) == []


@pytest.mark.parametrize("settings", _ALL)
def test_what_is_somebody_elses_is_there_and_not_ones_own(settings: type[ServiceSettings]) -> None:
    assert settings.others <= _DOCUMENTED
    assert settings.others.isdisjoint(name.upper() for name in settings.model_fields)


@pytest.mark.parametrize(
    ("settings", "misspelt", "meant"),
    [
        (InferenceSettings, "INFERENCE_PROT", "INFERENCE_PORT"),
        (GatewaySettings, "VENICE_APIKEY", "VENICE_API_KEY"),
        (GatewaySettings, "GATEWAY_TLS_CERTS", "GATEWAY_TLS_CERT"),
        (TrainerSettings, "GATEWAY_TARGETS", "GATEWAY_TARGET"),
        (DrafterSettings, "LATENTFORGE_CHECKPOINT", "LATENTFORGE_CHECKPOINTS"),
        (DemoSettings, "DEMO_SEEDS", "DEMO_SEED"),
    ],
)
def test_a_misspelt_name_is_told_with_the_one_that_is_meant(
    settings: type[ServiceSettings], misspelt: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(misspelt, "x")
    assert unknown_variables(settings) == [f"{misspelt} ({meant}?)"]
