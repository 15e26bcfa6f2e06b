"""Finding a vLLM server that may still be starting, and which of its models is meant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.waiting import NOT_YET, patiently
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings


@dataclass(frozen=True)
class ServedModel:
    """One of the models that a server lists; ``root`` is what it was loaded from."""

    name: str
    root: str
    max_model_len: int


async def wait_for_server(api: Api, settings: GatewaySettings, metrics: Metrics) -> tuple[ServedModel, str]:
    """The model that is meant, and the server's version, which is empty if it does not say.

    Raises:
        BackendError: VLLM_START_SECONDS have passed, or the server refuses.
    """

    async def look(upstream: Upstream) -> tuple[ServedModel, str]:
        return await served_now(upstream, api, settings)

    return await patiently(api, settings.vllm_start_seconds, metrics, look, "start it (make serve-vllm-local)")


async def served_now(upstream: Upstream, api: Api, settings: GatewaySettings) -> tuple[ServedModel, str]:
    """The model that is meant, and the server's version, which is empty if it does not say.

    Raises:
        BackendError: the server does not answer, or lists no such model.
    """
    served = _choose(await upstream.get("/v1/models"), api.url_setting, settings.vllm_served_model)
    return served, await _version(upstream)


def _choose(answer: Any, url_setting: str, chosen: str | None) -> ServedModel:
    try:
        models = {
            str(m["id"]): ServedModel(str(m["id"]), str(m.get("root") or ""), int(m["max_model_len"]))
            for m in answer["data"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        text = f"{url_setting} answers GET /v1/models with something that is not vLLM's list of models"
        raise BackendError(text, FailureKind.MISCONFIGURED) from None
    wanted = chosen or next(iter(models), None)
    if wanted is None or wanted not in models:
        listed = ", ".join(models) or "none"
        text = f"VLLM_SERVED_MODEL={wanted} is not among the models that {url_setting} lists: {listed}"
        raise BackendError(text, FailureKind.MISCONFIGURED)
    return models[wanted]


async def _version(upstream: Upstream) -> str:
    """A proxy may show /v1 only."""
    try:
        answer = await upstream.get("/version")
    except BackendError as error:
        if error.kind in NOT_YET:
            raise
        return ""
    return str(answer.get("version", "")) if isinstance(answer, Mapping) else ""
