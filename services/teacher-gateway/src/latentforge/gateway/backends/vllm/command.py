"""How vLLM must be started to be a scoring teacher: the command line of ``teacher-gateway serve-vllm``."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from latentforge.core.settings import SettingsError
from latentforge.gateway.settings import GatewaySettings

# Logits of all tokens of a step lie in memory at one time, and vLLM's memory profile does not know of them.
STEP_TOKENS = 2048
_VENV_PYTHON = Path(".venv-vllm/bin/python")
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
_CPU_CACHE_GIB = "2"


def vllm_command(settings: GatewaySettings) -> list[str]:
    """Program and arguments.

    Raises:
        SettingsError: a setting is missing, or no Python with vLLM is found.
    """
    model = settings.vllm_local_model
    if model is None:
        raise SettingsError("VLLM_LOCAL_MODEL is not set; give the folder or hub id of the model to serve")
    host, port = _address(settings.vllm_local_url)
    options: dict[str, Any] = {
        "--model": model,
        "--served-model-name": settings.vllm_served_model or served_name(model),
        "--host": host,
        "--port": port,
        "--dtype": settings.teacher_dtype,
        "--max-model-len": settings.vllm_max_model_len,
        "--max-logprobs": settings.max_top_k,
        "--max-num-batched-tokens": STEP_TOKENS,
        "--logprobs-mode": "raw_logprobs",
        # What the model's author likes must not shape what the teacher says.
        "--generation-config": "vllm",
        "--quantization": None if settings.vllm_quantization == "none" else settings.vllm_quantization,
        "--gpu-memory-utilization": gpu_arguments(settings).get("gpu_memory_utilization"),
        **{f"--{name.replace('_', '-')}": value for name, value in chosen_kernels(settings).items()},
    }
    given = [text for name, value in options.items() if value is not None for text in (name, str(value))]
    # Not vLLM's own command: its CPU build is installed under another name, by which that does not find itself.
    module = ["-m", "vllm.entrypoints.openai.api_server"]
    return [str(_python(settings.vllm_python)), *module, *given, "--no-enable-prefix-caching"]


def vllm_environment(settings: GatewaySettings, inherited: dict[str, str]) -> dict[str, str]:
    """Variables to run it with; what the user set stays as it is."""
    ours = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.vllm_local_model is not None and Path(settings.vllm_local_model).is_dir():
        ours["HF_HUB_OFFLINE"] = "1"
    if not has_gpu():
        ours["VLLM_CPU_KVCACHE_SPACE"] = _CPU_CACHE_GIB
    return {**ours, **inherited}


def gpu_arguments(settings: GatewaySettings) -> dict[str, Any]:
    """Engine arguments that only a GPU has."""
    return {"gpu_memory_utilization": settings.vllm_gpu_memory_util} if has_gpu() else {}


def chosen_kernels(settings: GatewaySettings) -> dict[str, Any]:
    """Engine arguments that are left to vLLM unless the settings choose."""
    chosen = {"moe_backend": settings.vllm_moe_backend, "load_format": settings.vllm_load_format}
    return {name: value for name, value in chosen.items() if value != "auto"}


def has_gpu() -> bool:
    """Whether this machine has one; our torch may be a CPU build, so it is not asked."""
    return any(Path(device).exists() for device in _GPU_DEVICES)


def served_name(model: str) -> str:
    """A folder's name, or the hub id."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if parts.scheme != "http" or not host:
        raise SettingsError(f"VLLM_LOCAL_URL={url} is no address to serve at; use http://localhost:8000")
    return ("127.0.0.1" if host == "localhost" else host), port


def _python(chosen: Path | None) -> Path:
    if chosen is not None:
        if not chosen.is_file():
            raise SettingsError(f"VLLM_PYTHON={chosen} is no file; give the python of the environment that has vLLM")
        return chosen
    if _VENV_PYTHON.is_file():
        return _VENV_PYTHON.absolute()
    command = shutil.which("vllm")
    if command is not None and (python := Path(command).resolve().with_name("python")).is_file():
        return python
    raise SettingsError(
        f"no vLLM here: neither {_VENV_PYTHON} nor vllm on the PATH. On a Linux x86-64 machine without a GPU run "
        "python -m tools.vllm_env; elsewhere install vllm into an environment of its own, and set VLLM_PYTHON to that"
    )
