"""A vLLM server: the backends ``vllm-local`` and ``vllm-remote``."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from pydantic import SecretStr

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import (
    BackendError,
    ContinuationRequest,
    FailureKind,
    Piece,
    TokenIds,
)
from latentforge.gateway.backends.continuations import ContinuingBackend, stops
from latentforge.gateway.backends.identity import Witness, witness_ids
from latentforge.gateway.backends.model_folder import probe_text, read_model_files, tokenizer_folder
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.vllm.answers import (
    ANSWERS,
    blames_request,
    continuation,
    generated_rows,
    prompt_rows,
    scored,
)
from latentforge.gateway.backends.vllm.identity import ServedTeacher, ServerIdentity
from latentforge.gateway.backends.vllm.model import GREEDY, SAMPLING, describe
from latentforge.gateway.backends.vllm.startup import ServedModel, wait_for_server
from latentforge.gateway.backends.vllm.versions import check_version
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows

T = TypeVar("T")

# A large teacher may have a long queue before it; who asks sets a deadline of his own.
_TIMEOUT_SECONDS = 600.0
_MAX_QUEUED = 4096
_ATTEMPTS = 4
# A dead server must be told from a slow one soon, and a restarted one be found soon. A batch with one sequence that the
# server fails on costs 4 failures, and that sequence alone 4 more.
_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE = 16, 30.0, 5.0
_AS_IDS = {"return_token_ids": True, "return_tokens_as_token_ids": True, "add_special_tokens": False}
_COMPLETIONS = "/v1/completions"
_PROBE_TEMPERATURE = 2.0


class VllmBackend(ContinuingBackend):
    """Asks a server over HTTP with token ids and reads its answers into arrays, off the event loop.

    Args:
        url: the server's, with or without /v1.
        url_setting: the environment variable that gave it, for errors.
        key: the server's --api-key; ``key_setting`` gave it.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        *,
        url: str,
        url_setting: str,
        key: SecretStr | None,
        key_setting: str = "VLLM_REMOTE_API_KEY",
    ) -> None:
        self._settings = settings
        self._url_setting = url_setting
        self._api = Api(
            name=settings.teacher_backend,
            base_url=url.rstrip("/").removesuffix("/v1"),
            url_setting=url_setting,
            key=key,
            key_setting=key_setting,
            max_requests=settings.vllm_max_requests,
            max_queued=_MAX_QUEUED,
            attempts=_ATTEMPTS,
            timeout=_TIMEOUT_SECONDS,
            blames_request=blames_request,
        )
        on_change = metrics.breaker(settings.teacher_backend)
        breaker = Breaker(_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE, on_change=on_change)
        self._metrics = metrics
        self._breaker = breaker
        self._identity = ServerIdentity(self._api, settings, metrics, timeout=_TIMEOUT_SECONDS)
        self._upstream = Upstream(self._api, breaker, metrics, on_doubt=self._identity.doubt)

    async def load(self) -> None:
        """Waits for the server, and makes sure that it is the teacher that the settings describe."""
        self._files = await asyncio.to_thread(read_model_files, tokenizer_folder(self._settings))
        self._tokenizer = self._files.tokenizer
        served, version = await wait_for_server(self._api, self._settings, self._metrics)
        check_version(version, self._files.config, self._url_setting)
        self._model = served.name
        self._description = describe(
            self._settings,
            self._files,
            model=served.name,
            revision="",
            engine=f"vllm {version}".strip(),
            # A server does not say in what it computes; its revision changes with its configuration.
            compute_dtype=self._files.config.dtype,
            max_model_len=served.max_model_len,
        )
        fingerprint = await self._probe(served)
        ids = witness_ids(self._tokenizer, self._description.max_sequence_length)
        (rows,) = await self.score([ids], 1)
        witness = Witness.of(ids, rows.realised_logprobs)
        met = ServedTeacher(served, version, fingerprint, self._settings.vllm_revision)
        self._identity.meet(met, witness, self._description.vocab_size)
        self._witness = witness
        self._description = replace(self._description, revision=met.revision)

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        vocab_size = self._description.vocab_size
        payload = {
            "model": self._model,
            "prompt": [ids.tolist() for ids in sequences],
            "max_tokens": 1,
            "prompt_logprobs": top_k,
            "add_special_tokens": False,
            **GREEDY,
        }
        check = self._identity.check_answer
        return await self._ask(payload, lambda body: scored(body, sequences, top_k, vocab_size, check=check))

    async def check(self) -> None:
        await self._identity.look()
        if self._breaker.is_open:
            # It is closed by an answer, which nobody may be waiting for.
            await self.score([self._witness.token_ids], 1)

    async def close(self) -> None:
        await self._identity.close()
        await self._upstream.close()

    async def _continue(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        payload = {
            "model": self._model,
            "prompt": [request.prompt_ids.tolist()],
            "max_tokens": request.max_tokens,
            "logprobs": request.top_k or None,
            "seed": seed,
            **SAMPLING,
            "temperature": request.temperature,
            "top_p": request.top_p,
            **stops(request, self.tokenizer),
            **_AS_IDS,
        }
        tokenizer, vocab_size, check = self.tokenizer, self._description.vocab_size, self._identity.check_answer
        return await self._ask(
            payload, lambda body: continuation(body, index, request, tokenizer, vocab_size, check=check)
        )

    async def _ask(self, payload: Mapping[str, Any], read: Callable[[bytes], T]) -> T:
        return await self._identity.believed(self._upstream.post(_COMPLETIONS, lambda: payload, read))

    async def _probe(self, served: ServedModel) -> str:
        """Makes sure of what would be wrong and silent: ids, k, the output layer's width, raw log-probabilities.

        Returns:
            What the server calls its configuration.

        Raises:
            BackendError: one of them is not as the settings say, and which.
        """
        about = self._description
        text, ids = probe_text(self.tokenizer, served.max_model_len - 3)
        payload = {
            "model": self._model,
            "prompt": text,
            "max_tokens": 1,
            "prompt_logprobs": about.max_top_k,
            "logprobs": about.max_top_k,
            "seed": 0,
            **SAMPLING,
            "temperature": _PROBE_TEMPERATURE,
            "top_p": 1.0,
            "ignore_eos": True,
            **_AS_IDS,
        }
        try:
            answer = await self._upstream.post(_COMPLETIONS, lambda: payload, lambda body: ANSWERS.read(body, 1))
        except BackendError as error:
            if error.kind is FailureKind.REFUSED and "logprobs" in str(error):
                text = f"{error}; set MAX_TOP_K to what it allows, or serve with --max-logprobs {about.max_top_k}"
                raise BackendError(text, FailureKind.MISCONFIGURED) from None
            raise
        (choice,) = answer.choices
        theirs = choice.prompt_token_ids
        if theirs is None or not choice.token_ids:
            raise BackendError(f"{about.engine} gives no token ids; version 0.11 or newer is needed")
        if theirs != ids:
            same = [a == b for a, b in zip(theirs, ids, strict=False)]
            at = same.index(False) if False in same else len(same)
            raise BackendError(
                f"TOKENIZER_PATH={tokenizer_folder(self._settings)} is not the tokenizer of {served.name} at "
                f"{self._url_setting}: ids of one text differ from token {at} on ({ids[at : at + 4]} here, "
                f"{theirs[at : at + 4]} there)",
                FailureKind.MISCONFIGURED,
            )
        prompt_rows(choice.prompt_logprobs, np.array(ids, np.uint32), about.max_top_k, about.vocab_size)
        drawn = generated_rows(choice, len(ids), about.max_top_k, about.vocab_size)
        await self._probe_width_and_mode([*ids, choice.token_ids[0], about.vocab_size - 1], drawn)
        return answer.system_fingerprint or ""

    async def _probe_width_and_mode(self, ids: Sequence[int], drawn: SparseRows) -> None:
        """``drawn`` is the row of the last token but one, as it came with the continuation."""
        about = self._description
        try:
            (rows,) = await self.score([np.array(ids, np.uint32)], about.max_top_k)
        except BackendError as error:
            if error.kind is FailureKind.REFUSED:
                text = f"{error}; is config.json in {tokenizer_folder(self._settings)} this model's?"
                raise BackendError(text, FailureKind.MISCONFIGURED) from None
            raise
        spread, expected = _spread(drawn.logprobs[-1]), _spread(rows.logprobs[-2])
        # That temperature leaves half of it; a forward pass in another batch changes it by a few percent.
        if spread < 0.75 * expected:
            raise BackendError(
                f"{about.engine} gives processed log-probabilities with its own text; serve it with "
                "--logprobs-mode raw_logprobs",
                FailureKind.MISCONFIGURED,
            )


def _spread(logprobs: Any) -> float:
    return float(logprobs[0] - logprobs[-1])


def local_server(settings: GatewaySettings, metrics: Metrics) -> VllmBackend:
    return VllmBackend(settings, metrics, url=settings.vllm_local_url, url_setting="VLLM_LOCAL_URL", key=None)


def remote_server(settings: GatewaySettings, metrics: Metrics) -> VllmBackend:
    """
    Raises:
        SettingsError: VLLM_REMOTE_URL is not set.
    """
    if settings.vllm_remote_url is None:
        raise SettingsError("VLLM_REMOTE_URL is not set; TEACHER_BACKEND=vllm-remote needs the server's base URL")
    key = settings.vllm_remote_api_key
    return VllmBackend(settings, metrics, url=settings.vllm_remote_url, url_setting="VLLM_REMOTE_URL", key=key)


def compatible_server(settings: GatewaySettings, metrics: Metrics, model: str) -> VllmBackend:
    """The server of ``openai-compatible``, which answers as vLLM does; its settings have names of their own."""
    url = settings.openai_compatible_url
    assert url is not None
    theirs = {
        "vllm_served_model": model,
        "vllm_revision": settings.openai_compatible_revision,
        "vllm_max_requests": settings.openai_compatible_max_requests,
    }
    return VllmBackend(
        settings.model_copy(update=theirs),
        metrics,
        url=url,
        url_setting="OPENAI_COMPATIBLE_URL",
        key=settings.openai_compatible_api_key,
        key_setting="OPENAI_COMPATIBLE_API_KEY",
    )
