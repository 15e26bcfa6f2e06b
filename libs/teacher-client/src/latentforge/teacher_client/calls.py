"""The calls with one answer."""

from collections.abc import Sequence
from typing import Any, cast

from numpy.typing import ArrayLike

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.base_client import Unary
from latentforge.teacher_client.scored import (
    RowEncodingName,
    Scored,
    candidates_to_proto,
    check_revision,
    encoding_to_proto,
    scored_of,
)
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.teacher_client.wire import dtype_to_proto

# Token ids, a text, or a chat of (role, content) pairs.
Prompt = Sequence[int] | str | Sequence[tuple[str, str]]


def has_ids(prompt: Prompt) -> bool:
    """Whether a prompt is token ids, which mean nothing without their tokenizer's fingerprint."""
    return not isinstance(prompt, str) and not (len(prompt) and isinstance(prompt[0], tuple))


def get_teacher() -> Unary[pb.GetTeacherResponse]:
    return Unary("GetTeacher", pb.GetTeacherRequest(), _whole)


def score_sequence(
    fingerprint: str,
    prompt: Prompt,
    top_k: int,
    candidates: ArrayLike | None,
    dtype: LogprobDtype,
    encoding: RowEncodingName,
    expected_revision: str,
    *,
    token_strings: bool,
    parse_special_tokens: bool,
) -> Unary[Scored]:
    request = pb.ScoreRequest(
        tokenizer_fingerprint=fingerprint,
        token_strings=token_strings,
        parse_special_tokens=parse_special_tokens,
        top_k=top_k,
        logprob_dtype=dtype_to_proto(dtype),
        row_encoding=encoding_to_proto(encoding),
        expected_revision=expected_revision,
        candidates=None if candidates is None else candidates_to_proto(candidates),
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif has_ids(prompt):
        request.token_ids.extend(cast(Sequence[int], prompt))
    else:
        request.chat.CopyFrom(chat_to_proto(cast(Sequence[tuple[str, str]], prompt)))

    def value(answer: pb.ScoreResponse) -> Scored:
        check_revision(answer.provenance, expected_revision)
        return scored_of(0, answer, None if candidates is None else request.candidates)

    return Unary("Score", request, value)


def tokenize(text: str, *, parse_special_tokens: bool) -> Unary[list[int]]:
    request = pb.TokenizeRequest(text=text, parse_special_tokens=parse_special_tokens)
    return Unary("Tokenize", request, _token_ids)


def tokenize_chat(messages: Sequence[tuple[str, str]]) -> Unary[list[int]]:
    return Unary("Tokenize", pb.TokenizeRequest(chat=chat_to_proto(messages)), _token_ids)


def detokenize(fingerprint: str, token_ids: Sequence[int]) -> Unary[str]:
    request = pb.DetokenizeRequest(tokenizer_fingerprint=fingerprint, token_ids=token_ids)
    return Unary("Detokenize", request, lambda answer: answer.text)


def cache_stats() -> Unary[pb.GetCacheStatsResponse]:
    return Unary("GetCacheStats", pb.GetCacheStatsRequest(), _whole)


def chat_to_proto(messages: Sequence[tuple[str, str]]) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for role, content in messages])


def _whole(answer: Any) -> Any:
    return answer


def _token_ids(answer: pb.TokenizeResponse) -> list[int]:
    return list(answer.token_ids)
