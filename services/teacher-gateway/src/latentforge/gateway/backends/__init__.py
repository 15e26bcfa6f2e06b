"""The teachers, by TEACHER_BACKEND."""

from collections.abc import Callable

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import Backend
from latentforge.gateway.backends.local.backend import TransformersBackend
from latentforge.gateway.backends.openai_compatible.server import OpenAiCompatibleBackend
from latentforge.gateway.backends.venice.backend import VeniceBackend
from latentforge.gateway.backends.vllm.engine import VllmEngineBackend
from latentforge.gateway.backends.vllm.server import compatible_server, local_server, remote_server
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings


def _embedded(settings: GatewaySettings, metrics: Metrics) -> Backend:
    return TransformersBackend(settings, str(settings.embedded_teacher_path), "EMBEDDED_TEACHER_PATH", hub=False)


def _transformers(settings: GatewaySettings, metrics: Metrics) -> Backend:
    if settings.teacher_model is None:
        raise SettingsError("TEACHER_MODEL is not set; TEACHER_BACKEND=transformers needs a folder or a hub id")
    return TransformersBackend(settings, settings.teacher_model, "TEACHER_MODEL", hub=True)


def _vllm_local(settings: GatewaySettings, metrics: Metrics) -> Backend:
    if settings.vllm_local_mode == "in-process":
        return VllmEngineBackend(settings)
    return local_server(settings, metrics)


def _openai_compatible(settings: GatewaySettings, metrics: Metrics) -> Backend:
    return OpenAiCompatibleBackend(settings, metrics, lambda model: compatible_server(settings, metrics, model))


BACKENDS: dict[str, Callable[[GatewaySettings, Metrics], Backend]] = {
    "embedded": _embedded,
    "transformers": _transformers,
    "vllm-local": _vllm_local,
    "vllm-remote": remote_server,
    "venice": VeniceBackend,
    "openai-compatible": _openai_compatible,
}


def build_backend(settings: GatewaySettings, metrics: Metrics) -> Backend:
    """The teacher that TEACHER_BACKEND names, not loaded yet.

    Raises:
        SettingsError: a setting that it needs is missing.
    """
    return BACKENDS[settings.teacher_backend](settings, metrics)
