"""SGLang's own POST /generate: token ids in, log-probabilities of the prompt with token ids out.

Its /v1/completions writes tokens as text, and gives a prompt's only as text, from which ids would be guessed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind, Piece, TokenIds
from latentforge.gateway.backends.continuations import FINISH_REASONS, stops, text_of
from latentforge.gateway.backends.rows import Entries, WrongRowsError, rows_of
from latentforge.gateway.backends.upstream import Upstream
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

T = TypeVar("T")

_GENERATE = "/generate"
# Between what is said of one token twice in an answer.
_SAME_TOLERANCE = 1e-3
# Its sampling defaults come from the model's generation_config.json, so all that shape a draw are said.
_SAMPLING = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "ignore_eos": False,
}

# (log-probability, id, text): the first of a sequence has no log-probability.
_Said = tuple[float | None, int, str | None]


class _FinishReason(msgspec.Struct):
    type: str
    matched: int | str | list[int] | None = None


class _Meta(msgspec.Struct, gc=False):
    finish_reason: _FinishReason | None = None
    input_token_logprobs: list[_Said] | None = None
    input_top_logprobs: list[list[_Said] | None] | None = None


class _Answer(msgspec.Struct, gc=False):
    meta_info: _Meta
    output_ids: list[int] = []


_MANY = msgspec.json.Decoder(list[_Answer])
_ONE = msgspec.json.Decoder(_Answer)


class SglangTeacher:
    """Scores and continues ids. Rows of a continuation are scored: those that come with it are after temperature."""

    can_score = True

    def __init__(self, upstream: Upstream, tokenizer: TextTokenizer, vocab_size: int) -> None:
        self._upstream = upstream
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        payload = {
            "input_ids": [ids.tolist() for ids in sequences],
            "sampling_params": {**_SAMPLING, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top_k,
            "return_text_in_logprobs": False,
        }
        return await self._upstream.post(
            _GENERATE, lambda: payload, lambda body: scored(body, sequences, top_k, self._vocab_size)
        )

    async def continue_one(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        sampling: dict[str, Any] = {
            **_SAMPLING,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": request.max_tokens,
            "sampling_seed": seed % 2**31,
            **stops(request, self._tokenizer),
        }
        payload = {"input_ids": request.prompt_ids.tolist(), "sampling_params": sampling}
        piece = await self._upstream.post(
            _GENERATE, lambda: payload, lambda body: _continuation(body, index, request, self._tokenizer)
        )
        if not request.top_k or not piece.token_ids:
            return piece
        whole = np.concatenate([request.prompt_ids, np.array(piece.token_ids, np.uint32)])
        (rows,) = await self.score([whole], request.top_k)
        return replace(piece, rows=rows.part(len(request.prompt_ids) - 1, len(rows)))


def scored(body: bytes, sequences: Sequence[TokenIds], top_k: int, vocab_size: int) -> list[SparseRows]:
    """Rows for tokens 1 … L−1 of each sequence.

    Raises:
        BackendError: an answer is missing, short, null or impossible, and where.
    """
    answers = _decoded(_MANY, body)
    if len(answers) != len(sequences):
        raise BackendError(f"SGLang gives {len(answers)} answers where {len(sequences)} were asked for")
    try:
        return [
            _rows(answer.meta_info, token_ids, top_k, vocab_size)
            for answer, token_ids in zip(answers, sequences, strict=True)
        ]
    except WrongRowsError as error:
        raise BackendError(f"SGLang's log-probabilities are wrong: {error}") from None


def _rows(meta: _Meta, token_ids: TokenIds, top_k: int, vocab_size: int) -> SparseRows:
    own, top = meta.input_token_logprobs, meta.input_top_logprobs
    if own is None or top is None:
        raise WrongRowsError("input_token_logprobs or input_top_logprobs is missing")
    if [said[1] for said in own] != token_ids.tolist():
        raise WrongRowsError(f"input_token_logprobs are not of the {len(token_ids)} tokens that were sent")
    if len(top) != len(token_ids):
        raise WrongRowsError(f"input_top_logprobs has {len(top)} entries for {len(token_ids)} tokens")
    ids: list[int] = []
    logprobs: list[float] = []
    ranks: list[int] = []
    lengths: list[int] = []
    for at, (said, row) in enumerate(zip(own[1:], top[1:], strict=True), start=1):
        entries = [(said[0], said[1], 0)]
        for rank, (logprob, token_id, _) in enumerate(row or [], start=1):
            if token_id == said[1]:
                _check_same(at, logprob, said[0])
                entries[0] = (logprob, token_id, rank)
            else:
                entries.append((logprob, token_id, rank))
        for logprob, token_id, rank in entries:
            if logprob is None:
                # JSON has no infinity and no NaN, and which of them it was is not known.
                raise WrongRowsError(f"the row for position {at} has no number for id {token_id}")
            ids.append(token_id)
            logprobs.append(logprob)
            ranks.append(rank)
        lengths.append(len(entries))
    found = Entries(np.array(lengths, np.int64), np.array(ids, np.int64), np.array(logprobs), np.array(ranks, np.int64))
    return rows_of(found, token_ids[1:], 1, top_k, vocab_size)


def _check_same(at: int, one: float | None, other: float | None) -> None:
    if one is not None and other is not None and abs(one - other) > _SAME_TOLERANCE:
        raise WrongRowsError(f"the row for position {at} has {one:g} and {other:g} for the token that is there")


def _continuation(body: bytes, index: int, request: ContinuationRequest, tokenizer: TextTokenizer) -> Piece:
    answer = _decoded(_ONE, body)
    finished = answer.meta_info.finish_reason
    reason = FINISH_REASONS.get(finished.type if finished is not None else "")
    if finished is None or reason is None:
        raise BackendError(f"SGLang ended a continuation with {finished}", FailureKind.GONE)
    ids = answer.output_ids
    ended_by_token = bool(ids) and finished.matched == ids[-1]
    text = text_of(ids, reason, None if ended_by_token else "", request, tokenizer)
    return Piece(index, ids, text, None, reason)


def _decoded(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BackendError(f"SGLang's answer to {_GENERATE} cannot be read: {error}") from None
