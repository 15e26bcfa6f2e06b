"""What the compose files say, read without an engine."""

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from latentforge.core.settings import ServiceSettings
from latentforge.gateway.backends.vllm.versions import TESTED_VERSION
from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from tools.demo.settings import ROOT
from tools.vllm_env import VERSION

_SECONDS = {"s": 1, "m": 60}
# What a container has of its own: folders that are its volumes, or lie in its image.
_INSIDE = {"CHECKPOINTS_DIR", "FALLBACK_RUN", "GATEWAY_TLS_CA", "RECIPES_DIR", "RUNS_DIR", "TOKENIZER_PATH"}


def _services(name: str) -> dict[str, Any]:
    text = (ROOT / name).read_text(encoding="utf-8").replace("!override", "")
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


_DEFAULT = _services("docker-compose.yml")
_GB10 = _services("docker-compose.gb10.yml")


def _in_gb10(service: str) -> dict[str, Any]:
    """A service of the GB10 file over the one of the default stack that it changes or extends."""
    changed = _GB10[service]
    base = _DEFAULT[changed["extends"]["service"] if "extends" in changed else service]
    return {**base, **changed}


@pytest.mark.parametrize(
    ("service", "longest"),
    [
        # All of its memory, onto a slow disk.
        ("redis", 55),
        ("teacher-gateway", GatewaySettings.model_fields["shutdown_grace_seconds"].default),
        # A step of a large student, its state on a slow disk and a checkpoint.
        ("trainer", 240),
        ("inference", InferenceSettings.model_fields["inference_shutdown_seconds"].default),
    ],
)
def test_docker_kills_no_service_before_it_has_drained(service: str, longest: float) -> None:
    for effective in (_DEFAULT[service], _in_gb10(service), _in_gb10(f"{service}-dual")):
        grace = effective["stop_grace_period"]
        assert int(grace[:-1]) * _SECONDS[grace[-1]] >= longest + 5


def test_the_gateway_is_published_to_this_machine_alone() -> None:
    for effective in (_DEFAULT["teacher-gateway"], _in_gb10("teacher-gateway"), _in_gb10("teacher-gateway-dual")):
        assert effective["ports"] == ["127.0.0.1:${GATEWAY_PORT:-50051}:50051"]


@pytest.mark.parametrize(("service", "settings"), [("trainer", TrainerSettings), ("inference", InferenceSettings)])
def test_every_setting_reaches_the_container_that_reads_it(service: str, settings: type[ServiceSettings]) -> None:
    passed = set(_DEFAULT[service]["environment"])
    assert {name.upper() for name in settings.model_fields} - _INSIDE - passed == set()
    assert passed - {"OMP_WAIT_POLICY"} <= {name.upper() for name in settings.model_fields}
    # The gateway's container gets all of .env.
    assert _DEFAULT["teacher-gateway"]["env_file"] == [{"path": ".env", "required": False}]


_VLLM = [name for name in _GB10 if name.startswith("vllm-")]


def test_one_version_of_vllm_is_tested_pinned_and_named() -> None:
    assert VERSION == TESTED_VERSION
    assert {_GB10[name]["image"] for name in [*_VLLM, "drop-caches"]} == {
        "${VLLM_IMAGE:-vllm/vllm-openai:v" + TESTED_VERSION + "}"
    }


@pytest.mark.parametrize("service", _VLLM)
def test_page_cache_is_dropped_before_vllm_looks_for_memory(service: str) -> None:
    effective, before = _GB10[service], _GB10["drop-caches"]
    assert effective["depends_on"] == {"drop-caches": {"condition": "service_completed_successfully"}}
    assert set(effective["profiles"]) <= set(before["profiles"])
    assert before["entrypoint"][-1].endswith("echo 3 > /proc/sys/vm/drop_caches")


@pytest.mark.parametrize("service", _VLLM)
def test_kernels_and_loader_of_vllm_are_settings_and_what_corrupts_rows_is_off(service: str) -> None:
    command = _GB10[service]["command"].split()
    for option, name in (("--moe-backend", "VLLM_MOE_BACKEND"), ("--load-format", "VLLM_LOAD_FORMAT")):
        default = GatewaySettings.model_fields[name.lower()].default
        assert command[command.index(option) + 1] == f"${{{name}:-{default}}}"
    assert "--no-enable-prefix-caching" in command
    assert "--speculative-config" not in command
