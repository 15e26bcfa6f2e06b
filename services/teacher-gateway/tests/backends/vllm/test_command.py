import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.vllm import command as module
from latentforge.gateway.backends.vllm.command import vllm_command, vllm_environment
from latentforge.gateway.cli import app
from latentforge.gateway.settings import GatewaySettings

MakeServed = Callable[..., GatewaySettings]


@pytest.fixture
def served(random_teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeServed:
    """Settings of a server for the random teacher on a machine without a GPU."""
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.chdir(tmp_path)

    def make(**changes: Any) -> GatewaySettings:
        return GatewaySettings(**({"vllm_local_model": str(random_teacher), "vllm_python": sys.executable} | changes))

    return make


def options(command: list[str]) -> dict[str, str | None]:
    """Values of the options after the module's name; None for flags."""
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    given: dict[str, str | None] = {}
    rest = command[3:]
    while rest:
        name = rest.pop(0)
        given[name] = None if not rest or rest[0].startswith("--") else rest.pop(0)
    return given


def test_a_scoring_teacher_is_what_is_started(served: MakeServed, random_teacher: Path) -> None:
    command = vllm_command(served())
    assert command[0] == sys.executable
    assert options(command) == {
        "--model": str(random_teacher),
        "--served-model-name": "tiny-random",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--dtype": "auto",
        "--max-logprobs": "64",
        "--max-num-batched-tokens": "2048",
        "--logprobs-mode": "raw_logprobs",
        "--generation-config": "vllm",
        "--no-enable-prefix-caching": None,
    }


def test_every_setting_has_its_option(served: MakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_gpu", lambda: True)
    given = options(
        vllm_command(
            served(
                vllm_quantization="awq",
                vllm_max_model_len=4096,
                vllm_gpu_memory_util=0.7,
                vllm_local_url="http://0.0.0.0:9001/v1",
                vllm_served_model="teacher",
                max_top_k=20,
                teacher_dtype="bfloat16",
                vllm_moe_backend="marlin",
                vllm_load_format="fastsafetensors",
            )
        )
    )
    assert given["--quantization"] == "awq"
    assert given["--max-model-len"] == "4096"
    assert given["--gpu-memory-utilization"] == "0.7"
    assert (given["--host"], given["--port"]) == ("0.0.0.0", "9001")
    assert given["--served-model-name"] == "teacher"
    assert given["--max-logprobs"] == "20"
    assert given["--dtype"] == "bfloat16"
    assert (given["--moe-backend"], given["--load-format"]) == ("marlin", "fastsafetensors")


def test_a_hub_id_is_served_under_its_own_name(served: MakeServed) -> None:
    settings = served(vllm_local_model="Qwen/Qwen3-0.6B")
    assert options(vllm_command(settings))["--served-model-name"] == "Qwen/Qwen3-0.6B"
    assert "HF_HUB_OFFLINE" not in vllm_environment(settings, {})


def test_a_folder_needs_no_network_and_what_the_user_set_stays(served: MakeServed) -> None:
    assert vllm_environment(served(), {})["HF_HUB_OFFLINE"] == "1"
    assert vllm_environment(served(), {"VLLM_CPU_KVCACHE_SPACE": "8"})["VLLM_CPU_KVCACHE_SPACE"] == "8"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vllm_local_model": None}, "VLLM_LOCAL_MODEL is not set"),
        ({"vllm_local_url": "https://localhost:8000"}, "VLLM_LOCAL_URL=https://localhost:8000 is no address"),
        ({"vllm_local_url": "localhost:8000"}, "VLLM_LOCAL_URL=localhost:8000 is no address"),
        ({"vllm_local_url": "http://localhost:port"}, "is no address"),
        ({"vllm_python": Path("/nowhere/python")}, "VLLM_PYTHON=/nowhere/python is no file"),
    ],
)
def test_what_is_wrong_is_named(served: MakeServed, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        vllm_command(served(**changes))


def test_vllm_is_looked_for_beside_the_checkout_then_on_the_path(
    served: MakeServed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = served(vllm_python=None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SettingsError, match=r"neither .venv-vllm/bin/python nor vllm on the PATH.*tools.vllm_env"):
        vllm_command(settings)
    for name in ("bin/vllm", "bin/python", ".venv-vllm/bin/python"):
        path = tmp_path / name
        if name.startswith(".venv"):
            assert vllm_command(settings)[0] == str(tmp_path / "bin/python")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    assert vllm_command(settings)[0] == str(tmp_path / ".venv-vllm/bin/python")


def test_the_command_is_printed_with_more_arguments(served: MakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOCAL_MODEL", str(served().vllm_local_model))
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    shown = CliRunner().invoke(app, ["serve-vllm", "--print", "--", "--tensor-parallel-size", "2"])
    assert shown.exit_code == 0
    assert shown.output.startswith(f"{sys.executable} -m vllm.entrypoints.openai.api_server --model ")
    assert shown.output.endswith("--no-enable-prefix-caching --tensor-parallel-size 2\n")


def test_a_missing_model_ends_the_command_with_what_to_set(served: MakeServed) -> None:
    result = CliRunner().invoke(app, ["serve-vllm"])
    assert result.exit_code == 2
    assert "error: VLLM_LOCAL_MODEL is not set" in result.output


def test_the_command_becomes_the_server(served: MakeServed, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getpid(), sys.argv]))\n")
    python.chmod(0o755)
    environment = {**os.environ, "VLLM_PYTHON": str(python), "VLLM_LOCAL_MODEL": str(served().vllm_local_model)}
    command = [str(Path(sys.executable).with_name("teacher-gateway")), "serve-vllm"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    output, _ = process.communicate(timeout=60)
    pid, arguments = json.loads(output)
    assert pid == process.pid
    assert arguments[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
