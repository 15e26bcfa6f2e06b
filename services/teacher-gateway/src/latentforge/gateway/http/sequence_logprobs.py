"""POST /get_sequence_logprobs/: what `trl vllm-serve` of TRL 1.10 answers.

Newer trainers of TRL ask vLLM's /v1/completions for prompt_logprobs instead.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import TeacherDescription, TokenIds
from latentforge.gateway.http.call import HttpCall
from latentforge.gateway.http.decoding import Workers, decoded, decoded_ids
from latentforge.gateway.http.errors import invalid
from latentforge.gateway.http.scores import (
    check_answer_size,
    check_can_score,
    checked_ids,
    checked_top_k,
    score_all,
    unpacked,
)
from latentforge.gateway.rpc.validation import MAX_SEQUENCES
from latentforge.gateway.scoring.teacher import SequenceAnswer, Teacher
from latentforge.teacher_client.sparse_rows import SparseRows

_BINARY_BYTES, _JSON_BYTES = 11, 32


class _Fields(msgspec.Struct, gc=False):
    sequences: list[msgspec.Raw]
    prompt_lengths: list[int]
    top_logprobs: int = 100
    temperature: float = 1.0
    response_format: Literal["json", "binary"] = "json"


_DECODER = msgspec.json.Decoder(_Fields)


@dataclass(frozen=True)
class SequenceLogprobsRequest:
    """Whole sequences, and of each how many tokens are its prompt, whose rows are not wanted."""

    sequences: list[list[int]]
    prompt_lengths: list[int]
    top_logprobs: int
    temperature: float
    binary: bool


def read_sequence_logprobs_request(body: bytes) -> SequenceLogprobsRequest:
    """
    Raises:
        HttpError: 400; it is no JSON, or a field has another type than it may.
    """
    fields = decoded(_DECODER, body)
    return SequenceLogprobsRequest(
        decoded_ids(fields.sequences, "sequences"),
        fields.prompt_lengths,
        fields.top_logprobs,
        fields.temperature,
        fields.response_format == "binary",
    )


async def sequence_logprobs(
    request: SequenceLogprobsRequest, teacher: Teacher, workers: Workers, call: HttpCall
) -> tuple[bytes, Sequence[SequenceAnswer]]:
    """The answer's JSON, and what was scored for it.

    Raises:
        HttpError: the request is wrong, or the teacher failed.
    """
    about = teacher.description
    check_can_score(about)
    _check(request)
    top_k = checked_top_k(request.top_logprobs, "top_logprobs", about)
    sequences = await workers.run_large(sum(map(len, request.sequences)), _to_score, request, about)
    answers = await score_all(teacher, sequences, top_k, call)
    make = _binary if request.binary else _nested
    return await workers.run(make, request, answers), list(answers.values())


def _to_score(request: SequenceLogprobsRequest, about: TeacherDescription) -> dict[int, TokenIds]:
    """By their places, those sequences that have rows to give: not what is all prompt, and not a first token alone."""
    return {
        at: checked_ids(ids, f"sequences[{at}]", about)
        for at, (ids, length) in enumerate(zip(request.sequences, request.prompt_lengths, strict=True))
        if length < len(ids) and len(ids) > 1
    }


def _check(request: SequenceLogprobsRequest) -> None:
    if len(request.sequences) > MAX_SEQUENCES:
        raise invalid("sequences", f"has {len(request.sequences)}; at most {MAX_SEQUENCES} are allowed")
    if len(request.prompt_lengths) != len(request.sequences):
        what = f"has {len(request.prompt_lengths)} entries for {len(request.sequences)} sequences"
        raise invalid("prompt_lengths", what)
    for at, (ids, length) in enumerate(zip(request.sequences, request.prompt_lengths, strict=True)):
        if not 0 <= length <= len(ids):
            raise invalid(f"prompt_lengths[{at}]", f"is {length}; allowed are 0 to {len(ids)}, the sequence's length")
    # What vLLM gives by default is raw as well, and TRL would take it for the teacher's at that temperature.
    if request.temperature != 1:
        raise invalid(
            "temperature",
            f"is {request.temperature:g}; log-probabilities are raw, and of the likeliest tokens no other "
            "temperature's can be made; train with temperature 1",
        )
    lengths = _lengths(request)
    if request.binary:
        size = len(lengths) * max(lengths, default=0) * (request.top_logprobs + 1) * _BINARY_BYTES
    else:
        size = sum(lengths) * (request.top_logprobs + 1) * _JSON_BYTES
    check_answer_size(size, "top_logprobs")


def _lengths(request: SequenceLogprobsRequest) -> list[int]:
    """Tokens of each completion."""
    return [len(ids) - length for ids, length in zip(request.sequences, request.prompt_lengths, strict=True)]


def _binary(request: SequenceLogprobsRequest, answers: dict[int, SequenceAnswer]) -> bytes:
    """Arrays [sequences, longest completion, entries] in base64: float32, -inf where there is nothing, and int32."""
    lengths = _lengths(request)
    shape = (len(lengths), max(lengths, default=0), request.top_logprobs)
    logprobs_bnk, ids_bnk = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
    own_bn1, own_ids_bn1 = np.full((*shape[:2], 1), -np.inf, np.float32), np.zeros((*shape[:2], 1), np.int32)
    for at, answer in answers.items():
        rows = unpacked(answer, request.top_logprobs)
        # Row r is for token r + 1; a first token has none.
        first = max(request.prompt_lengths[at], 1)
        there = slice(first - request.prompt_lengths[at], lengths[at])
        given = slice(first - 1, None)
        beyond = np.arange(shape[2])[None, :] >= rows.counts[given, None]
        logprobs_bnk[at, there] = np.where(beyond, -np.inf, rows.logprobs[given])
        ids_bnk[at, there] = np.where(beyond, 0, rows.ids[given])
        own_bn1[at, there, 0] = rows.realised_logprobs[given]
        own_ids_bn1[at, there, 0] = request.sequences[at][first:]
    return msgspec.json.encode(
        {
            "logprobs_b64": _base64(logprobs_bnk),
            "token_ids_b64": _base64(ids_bnk),
            "actual_logprobs_b64": _base64(own_bn1),
            "actual_token_ids_b64": _base64(own_ids_bn1),
            "shape": shape,
            "completion_lengths": lengths,
        }
    )


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def _nested(request: SequenceLogprobsRequest, answers: dict[int, SequenceAnswer]) -> bytes:
    """Lists [sequences][tokens][entries] by rank: the likeliest tokens, and behind them the one that is there."""
    lengths = _lengths(request)
    logprobs: list[list[list[float]]] = [[[] for _ in range(length)] for length in lengths]
    ids: list[list[list[int]]] = [[[] for _ in range(length)] for length in lengths]
    for at, answer in answers.items():
        rows = unpacked(answer, request.top_logprobs)
        start = request.prompt_lengths[at]
        for position in range(max(start, 1), len(request.sequences[at])):
            own = request.sequences[at][position]
            ids[at][position - start], logprobs[at][position - start] = _row(rows, position - 1, own)
    return msgspec.json.encode({"logprobs": logprobs, "logprob_token_ids": ids})


def _row(rows: SparseRows, row: int, own: int) -> tuple[list[int], list[float]]:
    count = int(rows.counts[row])
    ids: list[int] = rows.ids[row, :count].tolist()
    logprobs: list[float] = rows.logprobs[row, :count].tolist()
    if own not in ids:
        ids.append(own)
        logprobs.append(float(rows.realised_logprobs[row]))
    return ids, logprobs
