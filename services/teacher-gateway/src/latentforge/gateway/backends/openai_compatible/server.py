"""The backend ``openai-compatible``: any server of OpenAI's completions, with what its answers are good for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import (
    BackendError,
    ContinuationRequest,
    FailureKind,
    LoadedBackend,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.continuations import continuations
from latentforge.gateway.backends.identity import Witness, digest, witness_ids
from latentforge.gateway.backends.model_folder import probe_text, read_model_files, tokenizer_folder
from latentforge.gateway.backends.openai_compatible.identity import MetServer
from latentforge.gateway.backends.openai_compatible.models import (
    Listed,
    find_model,
    first_difference,
    listed_now,
    tokenised,
)
from latentforge.gateway.backends.openai_compatible.probing import Found, Prober, sglang_weights
from latentforge.gateway.backends.openai_compatible.sglang import SglangTeacher
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.vllm.server import VllmBackend
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows

logger = logging.getLogger(__name__)

NAME, _URL, _KEY = "openai-compatible", "OPENAI_COMPATIBLE_URL", "OPENAI_COMPATIBLE_API_KEY"
_TIMEOUT_SECONDS = 600.0
_LOOK_SECONDS = 10.0
_MAX_QUEUED = 4096
_ATTEMPTS = 4
_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE = 16, 30.0, 5.0
_PROBE_TOKENS = 64


class OpenAiCompatibleBackend(LoadedBackend):
    """Finds out how the server gives log-probabilities, and asks it in that way from then on.

    A server that gives vLLM's ``prompt_logprobs`` is vLLM to us, with everything that is checked of one.

    Raises:
        SettingsError: OPENAI_COMPATIBLE_URL or TOKENIZER_PATH is not set, or cannot be used.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        if settings.openai_compatible_url is None:
            raise SettingsError(f"{_URL} is not set; TEACHER_BACKEND={NAME} needs the server's base URL")
        self._settings = settings
        self._metrics = metrics
        self._folder = tokenizer_folder(settings)
        self._api = Api(
            name=NAME,
            base_url=settings.openai_compatible_url.rstrip("/").removesuffix("/v1"),
            url_setting=_URL,
            key=settings.openai_compatible_api_key,
            key_setting=_KEY,
            max_requests=settings.openai_compatible_max_requests,
            max_queued=_MAX_QUEUED,
            attempts=_ATTEMPTS,
            timeout=_TIMEOUT_SECONDS,
        )
        self._breaker = Breaker(_BREAKER_FAILURES, _BREAKER_WINDOW, _BREAKER_PAUSE, on_change=metrics.breaker(NAME))
        self._met = MetServer(self._api)
        self._upstream = Upstream(self._api, self._breaker, metrics, on_doubt=self._met.doubt)
        impatient = replace(self._api, attempts=1, timeout=_LOOK_SECONDS)
        self._looks = Upstream(impatient, Breaker.never_opening(), metrics)
        self._vllm: VllmBackend | None = None

    async def load(self) -> None:
        """Waits for the server, and makes sure that it is the teacher that the settings describe."""
        settings = self._settings
        files = await asyncio.to_thread(read_model_files, self._folder)
        self._tokenizer = files.tokenizer
        self._vocab_size = files.config.vocab_size
        listed = await find_model(
            self._api, settings.vllm_start_seconds, self._metrics, settings.openai_compatible_model
        )
        self._model = listed
        longest = self._longest(listed)
        text, ids = probe_text(self._tokenizer, min(_PROBE_TOKENS, longest - 2))
        await self._check_tokenizer(text, ids)
        top_k = min(settings.max_top_k, self._vocab_size)
        prober = Prober(self._upstream, listed, files.tokenizer, self._vocab_size, ids, top_k, _URL)
        if await prober.gives_prompt_logprobs():
            self._vllm = self._as_vllm(listed)
            await self._vllm.load()
            self._description = self._vllm.description
            return
        self._found = await prober.as_sglang() or await prober.as_completions()
        self._description = self._describe(listed, self._found, longest, files.config.dtype)
        await self._meet(longest)
        if not self._description.can_score:
            logger.info("%s gives no log-probabilities of a prompt by token id: it continues, and cannot score", _URL)

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        if self._vllm is not None:
            return await self._vllm.score(sequences, top_k)
        return await self._met.believed(self._found.teacher.score(sequences, top_k))

    async def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        if self._vllm is not None:
            async for piece in self._vllm.generate(request):
                yield piece
            return
        async for piece in continuations(request, lambda index, seed: self._continue(request, index, seed)):
            yield piece

    async def check(self) -> None:
        if self._vllm is not None:
            await self._vllm.check()
            return
        await self._met.look()
        if self._breaker.is_open:
            # It is closed by an answer, which nobody may be waiting for.
            await self._upstream.get("/v1/models")

    async def close(self) -> None:
        await self._met.close()
        await self._looks.close()
        await self._upstream.close()
        if self._vllm is not None:
            await self._vllm.close()

    async def _continue(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        return await self._met.believed(self._found.teacher.continue_one(request, index, seed))

    async def _meet(self, longest: int) -> None:
        ids = witness_ids(self._tokenizer, longest)

        async def witnesses() -> Witness:
            (rows,) = await self._found.teacher.score([ids], 1)
            return Witness.of(ids, rows.realised_logprobs)

        witness = await witnesses() if self._description.can_score else None
        self._met.meet(await self._says(), witness, says=self._says, witnesses=witnesses)

    async def _says(self) -> str:
        """What tells one server of a teacher from another, as far as it says."""
        listed = await listed_now(self._looks, _URL, self._settings.openai_compatible_model)
        weights = await sglang_weights(self._looks) if isinstance(self._found.teacher, SglangTeacher) else ""
        return f"{listed}{f', weights {weights}' if weights else ''}"

    def _longest(self, listed: Listed) -> int:
        """Of prompt and continuation; servers need room for a token behind what they score."""
        asked = self._settings.max_sequence_length
        if listed.max_length is None and asked is None:
            raise BackendError(
                f"{_URL} does not say how long a sequence {listed.name} takes; set MAX_SEQUENCE_LENGTH",
                FailureKind.MISCONFIGURED,
            )
        if listed.max_length is not None and asked is not None and asked > listed.max_length - 1:
            raise BackendError(
                f"MAX_SEQUENCE_LENGTH={asked} is more than {listed.max_length - 1}, one less than {listed.name} takes "
                f"at {_URL}",
                FailureKind.MISCONFIGURED,
            )
        return asked or (listed.max_length or 0) - 1

    async def _check_tokenizer(self, text: str, ids: Sequence[int]) -> None:
        theirs = await tokenised(self._upstream, self._model.name, text)
        if theirs is None:
            logger.warning(
                "%s does not say how it tokenises; nothing but the tokens of its answers tells whether "
                "TOKENIZER_PATH=%s is its tokenizer",
                _URL,
                self._folder,
            )
            return
        at = first_difference(ids, theirs)
        if at is not None:
            raise BackendError(
                f"TOKENIZER_PATH={self._folder} is not the tokenizer of {self._model.name} at {_URL}: ids of one text "
                f"differ from token {at} on ({list(ids[at : at + 4])} here, {theirs[at : at + 4]} there)",
                FailureKind.MISCONFIGURED,
            )

    def _as_vllm(self, listed: Listed) -> VllmBackend:
        settings = self._settings.model_copy(
            update={
                "vllm_served_model": listed.name,
                "vllm_revision": self._settings.openai_compatible_revision,
                "vllm_max_requests": self._settings.openai_compatible_max_requests,
            }
        )
        assert settings.openai_compatible_url is not None
        return VllmBackend(
            settings,
            self._metrics,
            url=settings.openai_compatible_url,
            url_setting=_URL,
            key=settings.openai_compatible_api_key,
            key_setting=_KEY,
        )

    def _describe(self, listed: Listed, found: Found, longest: int, dtype: str) -> TeacherDescription:
        engine = f"{listed.owner} {found.version}".strip()
        return TeacherDescription(
            backend=NAME,
            model=listed.name,
            revision=digest(listed.name, engine, str(listed), found.weights, self._settings.openai_compatible_revision),
            quantization="unknown",
            engine=engine,
            compute_dtype=dtype,
            can_score=found.teacher.can_score,
            can_generate=True,
            max_top_k=found.max_top_k,
            max_sequence_length=longest,
            vocab_size=self._vocab_size,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            logprobs_mode=found.logprobs_mode,
            id_fidelity=found.id_fidelity,
        )
