"""The teachers of this version, by TEACHER_BACKEND."""

from collections.abc import Callable

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import Backend
from latentforge.gateway.backends.transformers_backend import TransformersBackend
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings


def _embedded(settings: GatewaySettings, metrics: Metrics) -> Backend:
    return TransformersBackend(settings, str(settings.embedded_teacher_path), "EMBEDDED_TEACHER_PATH", hub=False)


def _transformers(settings: GatewaySettings, metrics: Metrics) -> Backend:
    if settings.teacher_model is None:
        raise SettingsError("TEACHER_MODEL is not set; TEACHER_BACKEND=transformers needs a folder or a hub id")
    return TransformersBackend(settings, settings.teacher_model, "TEACHER_MODEL", hub=True)


BACKENDS: dict[str, Callable[[GatewaySettings, Metrics], Backend]] = {
    "embedded": _embedded,
    "transformers": _transformers,
}


def not_in_this_version(name: str) -> str:
    return f"TEACHER_BACKEND={name} is not in this version; use one of: {', '.join(BACKENDS)}"


def build_backend(settings: GatewaySettings, metrics: Metrics) -> Backend:
    """The teacher that TEACHER_BACKEND names, not loaded yet.

    Raises:
        SettingsError: this version does not have it, or a setting that it needs is missing.
    """
    if settings.teacher_backend not in BACKENDS:
        raise SettingsError(not_in_this_version(settings.teacher_backend))
    return BACKENDS[settings.teacher_backend](settings, metrics)
