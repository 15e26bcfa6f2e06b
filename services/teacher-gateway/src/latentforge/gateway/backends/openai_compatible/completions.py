"""POST /v1/completions: continues token ids, and scores them where ``echo`` gives a prompt's rows with ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece, TokenIds
from latentforge.gateway.backends.continuations import FINISH_REASONS, stops, text_of
from latentforge.gateway.backends.mapped_rows import (
    WrittenContinuation,
    WrittenPosition,
    WrittenToken,
    mapped_piece,
)
from latentforge.gateway.backends.openai_compatible.answers import (
    ANSWERS,
    Named,
    SaidPosition,
    ServedChoice,
    ServedCompletion,
    exact_rows,
    has_ids,
    positions_of,
)
from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.gateway.backends.upstream import Upstream
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

COMPLETIONS = "/v1/completions"
# Servers come with sampling defaults of their own, by these names and values: each ignores those of the others.
NEUTRAL: dict[str, Any] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "cache_prompt": False,
    "return_tokens_as_token_ids": True,
    "add_special_tokens": False,
}


class CompletionsTeacher:
    """Continues prompts of ids.

    Args:
        extras: fields besides OpenAI's own that the server takes.
        echoes: it gives the rows of a prompt with their ids.
        mapping: how to find ids where the server writes tokens as text; None where it gives ids.
    """

    def __init__(
        self,
        upstream: Upstream,
        model: str,
        tokenizer: TextTokenizer,
        vocab_size: int,
        *,
        extras: dict[str, Any],
        echoes: bool,
        mapping: TokenMapping | None,
    ) -> None:
        self._upstream = upstream
        self._model = model
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._extras = extras
        self._mapping = mapping
        self.can_score = echoes

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        payload = {
            "model": self._model,
            "prompt": [ids.tolist() for ids in sequences],
            "max_tokens": 1,
            "echo": True,
            "logprobs": top_k,
            "temperature": 1.0,
            "top_p": 1.0,
            **self._extras,
        }

        def read(body: bytes) -> list[SparseRows]:
            choices = ANSWERS.read(body, len(sequences)).choices
            return [
                exact_rows(echoed(choice, token_ids), token_ids[1:], 1, top_k, self._vocab_size)
                for choice, token_ids in zip(choices, sequences, strict=True)
            ]

        return await self._upstream.post(COMPLETIONS, lambda: payload, read)

    async def continue_one(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        answer = await self.complete(request, seed, max(1, request.top_k))
        check_prompt(answer, len(request.prompt_ids))
        (choice,) = answer.choices
        reason = FINISH_REASONS.get(choice.finish_reason or "")
        if reason is None:
            raise BackendError(f"the server ended a continuation with {choice.finish_reason!r}", FailureKind.GONE)
        positions = positions_of(choice)
        if self._mapping is not None:
            # As for every API that writes tokens as text: an id where it is certain, or the continuation is dropped.
            return mapped_piece(_written(choice, index, positions), request, request.top_k, self._mapping)
        ids = [-1 if position.own.token_id is None else position.own.token_id for position in positions]
        rows = None
        if request.top_k and ids:
            realised = np.array(ids, np.int64).astype(np.uint32)
            rows = exact_rows(positions, realised, len(request.prompt_ids), request.top_k, self._vocab_size)
        _, stop_ids = self._tokenizer.stops(request.stop)
        ended_by_token = bool(ids) and ids[-1] in (self._tokenizer.end_ids | request.end_ids | stop_ids)
        text = text_of(ids, reason, None if ended_by_token else "", request, self._tokenizer)
        if reason == FINISH_REASONS["stop"] and not ended_by_token and choice.text.startswith(text):
            # The tokens of a stop string may be left out, and with them a blank before it.
            text = choice.text
        return Piece(index, ids, text, rows, reason)

    async def complete(self, request: ContinuationRequest, seed: int, top_k: int) -> ServedCompletion:
        """The answer for one continuation, as it came."""
        stop = stops(request, self._tokenizer)
        payload: dict[str, Any] = {
            "model": self._model,
            "prompt": request.prompt_ids.tolist(),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": seed % 2**31,
            "logprobs": top_k,
            **({"stop": stop["stop"]} if stop["stop"] else {}),
            **self._extras,
        }
        if self._extras and stop["stop_token_ids"]:
            payload["stop_token_ids"] = stop["stop_token_ids"]
        return await self._upstream.post(COMPLETIONS, lambda: payload, lambda body: ANSWERS.read(body, 1))


def echoed(choice: ServedChoice, token_ids: TokenIds) -> list[SaidPosition]:
    """The positions of tokens 1 … L−1 of a prompt that the answer begins with.

    Raises:
        BackendError: it does not begin with the prompt, by ids.
    """
    positions = positions_of(choice)[: len(token_ids)]
    if [position.own.token_id for position in positions] != token_ids.tolist() or not has_ids(positions[1:]):
        raise BackendError("the server's answer does not begin with the prompt's tokens and their ids")
    return positions[1:]


def check_prompt(answer: ServedCompletion, length: int) -> None:
    """
    Raises:
        BackendError: the server counts other tokens of prompt than were sent.
    """
    counted = None if answer.usage is None else answer.usage.prompt_tokens
    if counted is not None and counted != length:
        raise BackendError(f"the server counts {counted} tokens of prompt where {length} were sent: it changes prompts")


def _written(choice: ServedChoice, index: int, positions: Sequence[SaidPosition]) -> WrittenContinuation:
    return WrittenContinuation(
        index,
        choice.finish_reason or "",
        choice.text,
        [WrittenPosition(_token(position.own), [_token(named) for named in position.top]) for position in positions],
    )


def _token(named: Named) -> WrittenToken:
    return WrittenToken(named.text, named.data, named.logprob or 0.0)
