"""The backend ``openai-compatible``: any server of OpenAI's completions, with what its answers are good for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

from latentforge.gateway.backends.base import (
    Backend,
    BackendError,
    ContinuationRequest,
    FailureKind,
    LoadedBackend,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.identity import digest
from latentforge.gateway.backends.model_folder import ModelFiles, probe_text, read_model_files, tokenizer_folder
from latentforge.gateway.backends.openai_compatible.connection import NAME, URL, Connection
from latentforge.gateway.backends.openai_compatible.models import Listed, find_model, first_difference, tokenised
from latentforge.gateway.backends.openai_compatible.probing import Found, Prober
from latentforge.gateway.backends.openai_compatible.teacher import FoundTeacher
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import SparseRows

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 64


class OpenAiCompatibleBackend(LoadedBackend):
    """Finds out how the server gives log-probabilities, and has it asked in that way from then on.

    Args:
        as_vllm: from the name of a model that the server lists to the teacher that asks it as vLLM. A server that gives
            ``prompt_logprobs`` is vLLM to us, with everything that is checked of one.

    Raises:
        SettingsError: OPENAI_COMPATIBLE_URL or TOKENIZER_PATH is not set, or cannot be used.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics, as_vllm: Callable[[str], Backend]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._as_vllm = as_vllm
        self._connection = Connection(settings, metrics)
        self._folder = tokenizer_folder(settings)
        self._open = AsyncExitStack()
        self._open.push_async_callback(self._connection.close)

    async def load(self) -> None:
        """Waits for the server, and makes sure that it is the teacher that the settings describe."""
        settings = self._settings
        files = await asyncio.to_thread(read_model_files, self._folder)
        self._tokenizer = files.tokenizer
        api, chosen = self._connection.api, settings.openai_compatible_model
        listed = await find_model(api, settings.vllm_start_seconds, self._metrics, chosen)
        self._teacher = await self._choose(listed, files)
        self._open.push_async_callback(self._teacher.close)
        await self._teacher.load()
        self._description = self._teacher.description
        if not self._description.can_score:
            logger.info("%s gives no log-probabilities of a prompt by token id: it continues, and cannot score", URL)

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        return await self._teacher.score(sequences, top_k)

    def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        return self._teacher.generate(request)

    async def check(self) -> None:
        await self._teacher.check()

    async def close(self) -> None:
        await self._open.aclose()

    async def _choose(self, listed: Listed, files: ModelFiles) -> Backend:
        """The teacher that knows how this server answers, not loaded."""
        upstream, tokenizer, vocab_size = self._connection.upstream, files.tokenizer, files.config.vocab_size
        longest = self._longest(listed)
        text, ids = probe_text(tokenizer, min(_PROBE_TOKENS, longest - 2))
        await self._check_tokenizer(listed, text, ids)
        top_k = min(self._settings.max_top_k, vocab_size)
        prober = Prober(upstream, listed, tokenizer, vocab_size, ids, top_k, URL)
        if await prober.gives_prompt_logprobs():
            return self._as_vllm(listed.name)
        found = await prober.as_sglang() or await prober.as_completions()
        description = self._describe(listed, found, longest, files)
        return FoundTeacher(self._connection, found, description, tokenizer, self._settings.openai_compatible_model)

    def _longest(self, listed: Listed) -> int:
        """Of prompt and continuation; servers need room for a token behind what they score."""
        asked = self._settings.max_sequence_length
        if listed.max_length is None and asked is None:
            raise BackendError(
                f"{URL} does not say how long a sequence {listed.name} takes; set MAX_SEQUENCE_LENGTH",
                FailureKind.MISCONFIGURED,
            )
        if listed.max_length is not None and asked is not None and asked > listed.max_length - 1:
            raise BackendError(
                f"MAX_SEQUENCE_LENGTH={asked} is more than {listed.max_length - 1}, one less than {listed.name} takes "
                f"at {URL}",
                FailureKind.MISCONFIGURED,
            )
        return asked or (listed.max_length or 0) - 1

    async def _check_tokenizer(self, listed: Listed, text: str, ids: Sequence[int]) -> None:
        theirs = await tokenised(self._connection.upstream, listed.name, text)
        if theirs is None:
            logger.warning(
                "%s does not say how it tokenises; nothing but the tokens of its answers tells whether "
                "TOKENIZER_PATH=%s is its tokenizer",
                URL,
                self._folder,
            )
            return
        at = first_difference(ids, theirs)
        if at is not None:
            raise BackendError(
                f"TOKENIZER_PATH={self._folder} is not the tokenizer of {listed.name} at {URL}: ids of one text "
                f"differ from token {at} on ({list(ids[at : at + 4])} here, {theirs[at : at + 4]} there)",
                FailureKind.MISCONFIGURED,
            )

    def _describe(self, listed: Listed, found: Found, longest: int, files: ModelFiles) -> TeacherDescription:
        engine = f"{listed.owner} {found.version}".strip()
        return TeacherDescription(
            backend=NAME,
            model=listed.name,
            revision=digest(listed.name, engine, str(listed), found.weights, self._settings.openai_compatible_revision),
            quantization="unknown",
            engine=engine,
            compute_dtype=files.config.dtype,
            can_score=found.teacher.can_score,
            can_generate=True,
            max_top_k=found.max_top_k,
            max_sequence_length=longest,
            vocab_size=files.config.vocab_size,
            tokenizer_fingerprint=files.tokenizer.fingerprint,
            logprobs_mode=found.logprobs_mode,
            id_fidelity=found.id_fidelity,
        )
