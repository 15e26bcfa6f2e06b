"""Bounds in bytes, which hold before a request is parsed and before a text is tokenised.

Both cost many times the bytes that they are given: up to 250 bytes of memory for each of a text that is tokenised, and
30 for each of a request that is parsed, if it is made of empty messages.
"""

from collections.abc import Callable
from typing import Any

import grpc

from latentforge.gateway.backends.base import TeacherDescription
from latentforge.gateway.rpc.errors import Violation, invalid_argument
from latentforge.gateway.rpc.interceptor import SERVICE, HandlerInterceptor
from latentforge.text.tokenizer import TextTokenizer

# Text with more of them a token is little but blanks or one repeated character.
_BYTES_PER_TOKEN = 16
# A varint.
_BYTES_PER_ID = 5
# Fingerprint, roles, stop strings and what else is beside text and ids.
_OTHER_BYTES = 64 * 1024


def max_text_bytes(teacher: TeacherDescription, tokenizer: TextTokenizer) -> int:
    """Bytes of UTF-8 that a text may have: MAX_TEXT_BYTES, or 16 for each token of the teacher's longest sequence.

    Fewer where the vocabulary has no token that is so long, since no more can be used.
    """
    if teacher.max_text_bytes is not None:
        return teacher.max_text_bytes
    return teacher.max_sequence_length * min(_BYTES_PER_TOKEN, tokenizer.longest_token_bytes)


def check_request_size(method: str, size: int, teacher: TeacherDescription, tokenizer: TextTokenizer) -> None:
    """Refuses what is larger than a request of this method that is within the other limits.

    A batch may be as large as gRPC lets it.

    Raises:
        ApiError: INVALID_ARGUMENT.
    """
    ids = teacher.max_sequence_length * _BYTES_PER_ID
    text = max_text_bytes(teacher, tokenizer)
    limits = {
        "Score": ("token_ids", max(ids * (1 + teacher.max_top_k if teacher.can_score_candidates else 1), text)),
        "Generate": ("prompt", max(ids, text)),
        "Tokenize": ("input", text),
        "Detokenize": ("token_ids", ids),
    }
    if method not in limits:
        return
    field, limit = limits[method]
    if size > limit + _OTHER_BYTES:
        what = f"makes the request {size} bytes long; at most {limit + _OTHER_BYTES} are allowed"
        raise invalid_argument([Violation(field, f"{what}, for {teacher.max_sequence_length} tokens")])


class SizeInterceptor(HandlerInterceptor):
    """Has requests of the teacher API parsed only after ``check``, which is given a method and a number of bytes."""

    def __init__(self, check: Callable[[str, int], None]) -> None:
        self._check = check

    def wrapped(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        service, _, method = details.method.rpartition("/")
        if service != f"/{SERVICE}":
            return handler

        def parse(data: bytes) -> Any:
            self._check(method, len(data))
            return handler.request_deserializer(data)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handler.unary_stream, parse, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, parse, handler.response_serializer)
