"""Finds out, by asking, how a server gives log-probabilities and what they are worth."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece, TokenIds
from latentforge.gateway.backends.completion_answers import AnsweredCompletion, CompletionReader, ScoredChoice
from latentforge.gateway.backends.openai_compatible.answers import SaidPosition, ServedCompletion, has_ids, positions_of
from latentforge.gateway.backends.openai_compatible.completions import (
    COMPLETIONS,
    NEUTRAL,
    CompletionsTeacher,
    check_prompt,
)
from latentforge.gateway.backends.openai_compatible.models import Listed, unanswered
from latentforge.gateway.backends.openai_compatible.sglang import SglangTeacher
from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.gateway.backends.upstream import Upstream
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

_SCORED = CompletionReader(msgspec.json.Decoder(AnsweredCompletion[ScoredChoice]), "the server")
_PROBE_TOKENS = 8
_HIGH_TEMPERATURE = 2.0
# A forward pass in another batch changes it by a few percent, that temperature halves it.
_SAME_SPREAD = 0.75


class CompletingTeacher(Protocol):
    """One way to ask a server."""

    can_score: bool

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]: ...

    async def continue_one(self, request: ContinuationRequest, index: int, seed: int) -> Piece: ...


@dataclass(frozen=True)
class Found:
    """How to ask, and what the answers are.

    Attributes:
        version: what the server says of its software, empty if nothing.
        weights: what it says of its weights, empty if nothing.
    """

    teacher: CompletingTeacher
    max_top_k: int
    logprobs_mode: pb.LogprobsMode.ValueType
    id_fidelity: pb.IdFidelity.ValueType
    version: str = ""
    weights: str = ""


class Prober:
    """Asks one server.

    Args:
        ids: a prompt to try, at least two tokens.
        top_k: entries to ask for; a server that gives fewer is asked for those.
        setting: the environment variable of its URL, for errors.
    """

    def __init__(
        self,
        upstream: Upstream,
        listed: Listed,
        tokenizer: TextTokenizer,
        vocab_size: int,
        ids: Sequence[int],
        top_k: int,
        setting: str,
    ) -> None:
        self._upstream = upstream
        self._listed = listed
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ids = np.array(ids, np.uint32)
        self._top_k = top_k
        self._setting = setting

    async def gives_prompt_logprobs(self) -> bool:
        """Whether it answers vLLM's ``prompt_logprobs``; servers that do not know the field leave it out."""
        payload = {
            "model": self._listed.name,
            "prompt": [self._ids.tolist()],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 1,
        }
        try:
            answer = await self._upstream.post(COMPLETIONS, lambda: payload, lambda body: _SCORED.read(body, 1))
        except BackendError as error:
            if unanswered(error):
                return False
            raise
        return answer.choices[0].prompt_logprobs is not None

    async def as_sglang(self) -> Found | None:
        """None where the server is none."""
        teacher = SglangTeacher(self._upstream, self._tokenizer, self._vocab_size)
        try:
            await teacher.score([self._ids], self._top_k)
        except BackendError as error:
            if unanswered(error) and self._listed.owner != "sglang":
                return None
            raise
        mode, fidelity = pb.LOGPROBS_MODE_RAW, pb.ID_FIDELITY_EXACT
        return Found(teacher, self._top_k, mode, fidelity, weights=await sglang_weights(self._upstream))

    async def as_completions(self) -> Found:
        """
        Raises:
            BackendError: its answers have no log-probabilities, or are of other tokens than the settings say.
        """
        extras: dict[str, Any] = dict(NEUTRAL)
        try:
            answer = await self._complete(extras, 1.0)
        except BackendError as error:
            if error.kind is not FailureKind.REFUSED:
                raise
            # OpenAI's own fields alone.
            extras = {}
            answer = await self._complete_bare()
        check_prompt(answer, len(self._ids))
        positions = positions_of(answer.choices[0])
        exact = has_ids(positions)
        lengths = [len(position.top) for position in positions]
        # Of texts for tokens, those that are the same have one entry.
        top_k = min(self._top_k, min(lengths, default=0)) if exact else self._top_k * any(lengths)
        if not top_k:
            raise BackendError(
                f"{self._setting} gives no log-probabilities with what {self._listed.name} writes (logprobs of "
                "POST /v1/completions), so it cannot be a teacher",
                FailureKind.MISCONFIGURED,
            )
        if exact:
            self._check_bytes(positions)
        mapping = None if exact else await asyncio.to_thread(TokenMapping, self._tokenizer)
        teacher = self._teacher(extras, echoes=exact and await self._echoes(extras, top_k), mapping=mapping)
        warm = positions_of((await self._complete(extras, _HIGH_TEMPERATURE)).choices[0])
        raw = bool(warm) and _spread(warm[0], top_k) >= _SAME_SPREAD * _spread(positions[0], top_k)
        return Found(
            teacher,
            top_k,
            pb.LOGPROBS_MODE_RAW if raw else pb.LOGPROBS_MODE_PROCESSED,
            pb.ID_FIDELITY_EXACT if exact else pb.ID_FIDELITY_MAPPED,
            version=answer.system_fingerprint or "",
        )

    def _teacher(self, extras: dict[str, Any], *, echoes: bool, mapping: TokenMapping | None) -> CompletionsTeacher:
        return CompletionsTeacher(
            self._upstream,
            self._listed.name,
            self._tokenizer,
            self._vocab_size,
            extras=extras,
            echoes=echoes,
            mapping=mapping,
        )

    async def _complete(self, extras: dict[str, Any], temperature: float) -> ServedCompletion:
        request = ContinuationRequest(self._ids, _PROBE_TOKENS, temperature, 1.0, 1, 1, self._top_k, ())
        return await self._teacher(extras, echoes=False, mapping=None).complete(request, 1, self._top_k)

    async def _complete_bare(self) -> ServedCompletion:
        try:
            return await self._complete({}, 1.0)
        except BackendError as error:
            if error.kind is FailureKind.REFUSED and "logprobs" in str(error):
                raise BackendError(f"{error}; set MAX_TOP_K to what it allows", FailureKind.MISCONFIGURED) from None
            raise

    async def _echoes(self, extras: dict[str, Any], top_k: int) -> bool:
        try:
            await self._teacher(extras, echoes=True, mapping=None).score([self._ids], top_k)
        except BackendError as error:
            if unanswered(error):
                return False
            raise
        return True

    def _check_bytes(self, positions: Sequence[SaidPosition]) -> None:
        """A server's id and the bytes that it gives for it must be one token here, too."""
        known = self._tokenizer.token_bytes
        for named in (named for position in positions for named in (position.own, *position.top)):
            ours = known.get(-1 if named.token_id is None else named.token_id)
            if not named.data or ours is None or named.token_id in self._tokenizer.special_ids:
                continue
            if ours != named.data:
                raise BackendError(
                    f"TOKENIZER_PATH={self._tokenizer.folder} is not the tokenizer of {self._listed.name} at "
                    f"{self._setting}: id {named.token_id} is {ours!r} here and {named.data!r} there",
                    FailureKind.MISCONFIGURED,
                )


async def sglang_weights(upstream: Upstream) -> str:
    """What SGLang calls its weights, which change with an update; empty if it does not say."""
    try:
        about: Any = await upstream.get("/get_model_info")
    except BackendError as error:
        if unanswered(error):
            return ""
        raise
    return str(about.get("weight_version") or "") if isinstance(about, Mapping) else ""


def _spread(position: SaidPosition, top_k: int) -> float:
    """Nats between the first entry and the last, or certainty where there is one alone."""
    logprobs = [named.logprob or 0.0 for named in position.top[:top_k]]
    return logprobs[0] - logprobs[-1] if len(logprobs) > 1 else -logprobs[0]
