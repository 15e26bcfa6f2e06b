"""Whether the settings for the chosen teacher work, one line per finding."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends import BACKENDS, build_backend, not_in_this_version
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings, without_password

_SECONDS = 10.0
_SENTENCE = "import os\nfor name in os.listdir(path):\n    print("


@dataclass(frozen=True)
class Finding:
    """One line for people."""

    ok: bool
    text: str


async def check(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """Tries the teacher of TEACHER_BACKEND for real. It works if every finding is ok."""
    name = settings.teacher_backend
    if name in BACKENDS:
        findings = _check_loaded(settings)
    elif name == "venice":
        findings = _check_venice(settings)
    else:
        findings = _check_vllm(settings)
    async for finding in findings:
        yield finding
    if name not in BACKENDS:
        yield Finding(False, not_in_this_version(name))


async def _check_loaded(settings: GatewaySettings) -> AsyncIterator[Finding]:
    try:
        backend = build_backend(settings, Metrics())
        await backend.load()
    except (SettingsError, BackendError) as error:
        yield Finding(False, str(error))
        return
    about = backend.description
    yield Finding(True, f"{about.backend} teacher {about.model}, revision {about.revision}, {about.engine}")
    yield Finding(True, f"tokenizer {about.tokenizer_fingerprint}, {about.vocab_size} ids")
    ids = np.array(backend.tokenizer.encode(_SENTENCE), np.uint32)[: about.max_sequence_length]
    try:
        (rows,) = await backend.score([ids], min(3, about.max_top_k))
    except BackendError as error:
        yield Finding(False, f"scoring failed: {error}")
        return
    finally:
        await backend.close()
    before = backend.tokenizer.decode([int(i) for i in ids[:-1]])
    guesses = ", ".join(
        f"{backend.tokenizer.decode([int(token)])!r} {np.exp(logprob):.1%}"
        for token, logprob in zip(rows.ids[-1], rows.logprobs[-1], strict=True)
    )
    nats = -float(rows.realised_logprobs.mean())
    yield Finding(True, f"scored {len(rows)} positions at {nats:.2f} nats; after {before[-12:]!r}: {guesses}")


async def _check_venice(settings: GatewaySettings) -> AsyncIterator[Finding]:
    if settings.venice_api_key is None:
        yield Finding(False, _missing_key("VENICE_API_KEY"))
        return
    url = settings.venice_base_url
    answer = await _models("VENICE_BASE_URL", url, url, "VENICE_API_KEY", settings.venice_api_key.get_secret_value())
    if isinstance(answer, Finding):
        yield answer
        return
    yield Finding(True, f"{without_password(url)} lists {len(answer)} models")
    able = sorted(name for name, model in answer.items() if _supports_logprobs(model))
    wanted = settings.venice_model
    others = f"listed models that give logprobs: {', '.join(able) or 'none'}"
    if wanted not in answer:
        yield Finding(False, f"VENICE_MODEL={wanted} is not listed; {others}")
    elif wanted not in able:
        yield Finding(False, f"VENICE_MODEL={wanted} gives no logprobs; {others}")
    else:
        yield Finding(True, f"{wanted} is listed and gives logprobs")


async def _check_vllm(settings: GatewaySettings) -> AsyncIterator[Finding]:
    local = settings.teacher_backend == "vllm-local"
    name = "VLLM_LOCAL_URL" if local else "VLLM_REMOTE_URL"
    url = settings.vllm_local_url if local else settings.vllm_remote_url
    if url is None:
        yield Finding(False, _missing_key(name))
        return
    secret = None if local else settings.vllm_remote_api_key
    key = None if secret is None else secret.get_secret_value()
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    answer = await _models(name, url, base, "VLLM_REMOTE_API_KEY", key)
    yield (
        answer if isinstance(answer, Finding) else Finding(True, f"{without_password(url)} serves {', '.join(answer)}")
    )


def _missing_key(name: str) -> str:
    if not Path(".env").exists():
        return f"{name} is not set and there is no .env; run: cp .env.example .env, then set {name} in it"
    return f"{name} is missing in .env; set it there"


def _supports_logprobs(model: dict[str, Any]) -> bool:
    return bool(model.get("model_spec", {}).get("capabilities", {}).get("supportsLogProbs"))


async def _models(
    setting: str, given: str, base: str, key_setting: str, key: str | None
) -> dict[str, dict[str, Any]] | Finding:
    """What GET {base}/models lists, by id, or the one line that says why it cannot be had."""
    shown = without_password(given)
    try:
        parsed = httpx.URL(base)
    except httpx.InvalidURL as error:
        return Finding(False, f"{setting} malformed {shown!r} ({error}); allowed is http(s)://host[:port][/path]")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return Finding(False, f"{setting} malformed {shown!r}; allowed is http(s)://host[:port][/path]")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(timeout=_SECONDS, headers=headers) as client:
            response = await client.get(f"{base.rstrip('/')}/models")
    except UnicodeEncodeError:
        return Finding(False, f"{key_setting} has characters that no key has; copy it again")
    except httpx.TimeoutException:
        return Finding(
            False, f"{setting}={shown} did not answer within {_SECONDS:g} s; check the address and firewalls"
        )
    except httpx.ConnectError as error:
        return Finding(False, f"{setting}={shown} cannot be reached ({error}); check host and port")
    except httpx.HTTPError as error:
        return Finding(False, f"{setting}={shown} does not speak HTTP as it should: {error}")
    if response.status_code in (401, 403):
        what = "is wrong" if key is not None else "is not set, and the server wants one"
        return Finding(
            False, f"{key_setting} {what}: {shown} answers {response.status_code}; set the right key in .env"
        )
    if response.status_code != httpx.codes.OK:
        return Finding(
            False, f"{setting}={shown} answers {response.status_code} to GET /models; is it the API's base URL?"
        )
    try:
        return {str(model["id"]): model for model in response.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return Finding(False, f"{setting}={shown} answers GET /models with something else than a list of models")
