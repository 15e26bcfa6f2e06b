"""Whether the settings for the chosen teacher work: two tests, one line per finding."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends import build_backend
from latentforge.gateway.backends.base import Backend, BackendError, ContinuationRequest, Piece, TokenIds
from latentforge.gateway.backends.http_api import parsed_url
from latentforge.gateway.backends.venice.backend import VeniceBackend, models_with_logprobs
from latentforge.gateway.backends.venice.messages import ListedModel, parse_models
from latentforge.gateway.check.listing import ListingError, listed_models
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings, shown_url
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.errors import ChatError

_SENTENCE = "import os\nfor name in os.listdir(path):\n    print("
_CHAT = (("user", "Write a Python function that adds two numbers."),)
_TOKENS = 16
# A check that waits for a server to start, or through a rate limit, says nothing for minutes.
_IMPATIENT = {"vllm_start_seconds": 0.0, "venice_attempts": 1, "venice_timeout_seconds": 60.0}


@dataclass(frozen=True)
class Finding:
    """One line for people."""

    ok: bool
    text: str


async def check(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """Tries the teacher of TEACHER_BACKEND for real. It works if every finding is ok.

    Test 1 asks what models there are, test 2 has one sequence scored or, where the teacher cannot, one chat continued
    with logprobs. A test that cannot work any more is left out.
    """
    settings = settings.model_copy(update=_IMPATIENT)
    missing = list(_missing(settings))
    try:
        if "VENICE_API_KEY" in missing:
            async for finding in _list_venice(settings):
                yield finding
    except (SettingsError, BackendError, ListingError) as error:
        yield Finding(False, " ".join(str(error).split()))
    for name in missing:
        yield Finding(False, _how_to_set(name))
    if missing:
        return
    try:
        if settings.teacher_backend == "venice":
            findings = _check_venice(settings)
        elif settings.teacher_backend in ("vllm-remote", "openai-compatible") or (
            settings.teacher_backend == "vllm-local" and settings.vllm_local_mode == "server"
        ):
            findings = _check_server(settings)
        else:
            findings = _check_loaded(settings)
        async for finding in findings:
            yield finding
    except (SettingsError, BackendError, ListingError, ChatError) as error:
        yield Finding(False, " ".join(str(error).split()))


def _missing(settings: GatewaySettings) -> Iterator[str]:
    name = settings.teacher_backend
    if name == "venice" and settings.venice_api_key is None:
        yield "VENICE_API_KEY"
    if name == "vllm-remote" and settings.vllm_remote_url is None:
        yield "VLLM_REMOTE_URL"
    if name == "openai-compatible" and settings.openai_compatible_url is None:
        yield "OPENAI_COMPATIBLE_URL"
    loads = settings.vllm_local_model if name == "vllm-local" else None
    has_tokenizer = settings.tokenizer_path is not None or (loads is not None and Path(loads).is_dir())
    if name in ("venice", "vllm-local", "vllm-remote", "openai-compatible") and not has_tokenizer:
        yield "TOKENIZER_PATH"
    if name == "transformers" and settings.teacher_model is None:
        yield "TEACHER_MODEL"


def _how_to_set(name: str) -> str:
    if not Path(".env").exists():
        return f"{name} is not set and there is no .env; run: cp .env.example .env, then set {name} in it"
    return f"{name} is missing in .env; set it there"


async def _list_venice(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """What anybody may know: a line for each model, those that give log-probabilities first."""
    url = settings.venice_base_url
    models = parse_models(await listed_models("VENICE_BASE_URL", url, "/models", "VENICE_API_KEY", None))
    yield Finding(True, f"test 1: {shown_url(url)} lists {len(models)} models to everybody")
    for model in sorted(models.values(), key=lambda model: (not model.gives_logprobs, model.id)):
        yield Finding(True, f"test 1: {model.describe()}")


async def _check_venice(settings: GatewaySettings) -> AsyncIterator[Finding]:
    url, key = settings.venice_base_url, settings.venice_api_key
    answer = await listed_models("VENICE_BASE_URL", url, "/models", "VENICE_API_KEY", key)
    models = parse_models(answer)
    yield Finding(True, f"test 1: {shown_url(url)} lists {len(models)} models")
    able = _abilities(settings.venice_model, models)
    yield able
    if settings.venice_model in models:
        async for finding in _complete(VeniceBackend(settings, Metrics()), models):
            yield finding


def _abilities(wanted: str, models: dict[str, ListedModel]) -> Finding:
    if wanted not in models:
        return Finding(False, f"test 1: VENICE_MODEL={wanted} is not listed; {models_with_logprobs(models)}")
    if not models[wanted].gives_logprobs:
        text = f"VENICE_MODEL={wanted} is listed with supportsLogProbs false; {models_with_logprobs(models)}"
        return Finding(False, f"test 1: {text}")
    return Finding(True, f"test 1: {models[wanted].describe()}")


async def _complete(backend: VeniceBackend, models: dict[str, ListedModel]) -> AsyncIterator[Finding]:
    """A real chat completion, whatever the list says that the model can."""
    try:
        await backend.prepare()
        pieces = [piece async for piece in backend.generate(_greeting(backend))]
    except BackendError as error:
        raise BackendError(f"test 2: no chat completion with logprobs: {error}") from None
    finally:
        await backend.close()
    yield _completed(pieces[0], backend)


def _greeting(backend: Backend) -> ContinuationRequest:
    about = backend.description
    messages = [{"role": role, "content": content} for role, content in _CHAT]
    return ContinuationRequest(
        prompt_ids=np.array(backend.tokenizer.encode_chat(messages, to_answer=True), np.uint32),
        max_tokens=_TOKENS,
        temperature=1.0,
        top_p=1.0,
        seed=1,
        n=1,
        top_k=about.max_top_k,
        stop=(),
        chat=_CHAT,
    )


def _completed(piece: Piece, backend: Backend) -> Finding:
    if piece.finish_reason == pb.FINISH_REASON_DROPPED:
        return Finding(False, f"test 2: the chat completion cannot be used: {piece.detail}")
    if piece.rows is None:
        return Finding(False, "test 2: the chat completion has no tokens")
    rows = piece.rows
    unmapped = 0.0 if rows.unmapped_mass is None else float(rows.unmapped_mass.mean())
    text = f"a chat completion of {len(rows)} tokens with up to {int(rows.counts.max())} logprobs each"
    cost = f"cost {backend.spent_usd:.6f} USD" if backend.spent_usd else "no price is listed"
    text = f"{text}, {unmapped:.2%} of the mass without an id, {cost}"
    return Finding(True, f"test 2: {text}; {_guesses(rows, 0, backend)}")


async def _check_server(settings: GatewaySettings) -> AsyncIterator[Finding]:
    asked = {
        "vllm-local": ("VLLM_LOCAL_URL", settings.vllm_local_url, "VLLM_REMOTE_API_KEY", None),
        "vllm-remote": (
            "VLLM_REMOTE_URL",
            settings.vllm_remote_url,
            "VLLM_REMOTE_API_KEY",
            settings.vllm_remote_api_key,
        ),
        "openai-compatible": (
            "OPENAI_COMPATIBLE_URL",
            settings.openai_compatible_url,
            "OPENAI_COMPATIBLE_API_KEY",
            settings.openai_compatible_api_key,
        ),
    }
    name, url, key_name, key = asked[settings.teacher_backend]
    assert url is not None
    parsed_url(url, name)
    base = url.rstrip("/").removesuffix("/v1")
    answer = await listed_models(name, base, "/v1/models", key_name, key)
    listed = ", ".join(str(model.get("id")) for model in answer["data"])
    yield Finding(True, f"test 1: {shown_url(url)} serves {listed or 'no model'}")
    async for finding in _check_loaded(settings):
        yield finding


async def _check_loaded(settings: GatewaySettings) -> AsyncIterator[Finding]:
    """Loads the teacher, which finds its model, and has a sequence scored, or continued where it cannot score."""
    backend = build_backend(settings, Metrics())
    try:
        await backend.load()
        about = backend.description
        text = f"{about.backend} teacher {about.model}, revision {about.revision}, {about.engine}"
        yield Finding(True, f"test 1: {text}")
        yield Finding(True, f"test 1: tokenizer {about.tokenizer_fingerprint}, {about.vocab_size} ids")
        ids = np.array(backend.tokenizer.encode(_SENTENCE), np.uint32)[: about.max_sequence_length]
        if not about.can_score:
            yield await _continued(backend, ids)
            return
        try:
            (rows,) = await backend.score([ids], min(3, about.max_top_k))
        except BackendError as error:
            raise BackendError(f"test 2: scoring failed: {error}") from None
    finally:
        await backend.close()
    before = backend.tokenizer.decode([int(i) for i in ids[:-1]])
    nats = -float(rows.realised_logprobs.mean())
    text = f"scored {len(rows)} positions at {nats:.2f} nats; after {before[-12:]!r}: {_guesses(rows, -1, backend)}"
    yield Finding(True, f"test 2: {text}")


async def _continued(backend: Backend, ids: TokenIds) -> Finding:
    request = ContinuationRequest(ids, _TOKENS, 1.0, 1.0, 1, 1, backend.description.max_top_k, ())
    try:
        (piece,) = [piece async for piece in backend.generate(request)]
    except BackendError as error:
        raise BackendError(f"test 2: continuing failed: {error}") from None
    if piece.rows is None:
        return Finding(False, f"test 2: the continuation cannot be used: {piece.detail or 'it has no tokens'}")
    most = int(piece.rows.counts.max())
    text = f"it cannot score; a continuation of {len(piece.rows)} tokens has up to {most} logprobs each"
    return Finding(True, f"test 2: {text}; {_guesses(piece.rows, 0, backend)}")


def _guesses(rows: SparseRows, row: int, backend: Backend) -> str:
    entries = zip(rows.ids[row][: min(3, rows.counts[row])], rows.logprobs[row], strict=False)
    return ", ".join(f"{backend.tokenizer.decode([int(i)])!r} {np.exp(logprob):.1%}" for i, logprob in entries)
