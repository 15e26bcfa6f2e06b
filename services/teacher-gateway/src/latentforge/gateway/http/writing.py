"""Continuations of a prompt for /v1/completions."""

from contextlib import aclosing
from dataclasses import dataclass, field

from latentforge.gateway.backends.base import BackendError, ContinuationRequest
from latentforge.gateway.http.call import HttpCall
from latentforge.gateway.http.completion_request import TextRequest
from latentforge.gateway.http.errors import HttpError, http_error_of, invalid
from latentforge.gateway.http.scores import failed
from latentforge.gateway.rpc import validation
from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.scoring.teacher import Teacher
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows, join_rows

_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
# Fields of gRPC's request that have another name here.
_NAMES = {"token_ids": "prompt", "top_k": "logprobs"}


@dataclass
class WrittenText:
    """One continuation; nothing was written where there are no ids."""

    index: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    rows: SparseRows | None = None
    finish_reason: str = "length"


async def write(
    request: TextRequest,
    prompt_ids: list[int],
    max_tokens: int,
    teacher: Teacher,
    max_tokens_in_flight: int,
    call: HttpCall,
) -> list[WrittenText]:
    """The n continuations of a prompt.

    Raises:
        HttpError: a field is out of range, or the teacher failed.
    """
    continuation = _continuation(request, prompt_ids, max_tokens, teacher, max_tokens_in_flight)
    written = [WrittenText(index) for index in range(request.n)]
    rows: list[list[SparseRows]] = [[] for _ in written]
    try:
        async with aclosing(teacher.generate(continuation)) as pieces:
            async for piece in pieces:
                one = written[piece.index]
                one.ids += piece.token_ids
                one.text += piece.text
                if piece.rows is not None:
                    rows[piece.index].append(piece.rows)
                if piece.finish_reason == pb.FINISH_REASON_DROPPED:
                    raise HttpError(502, "teacher_dropped", f"the teacher's answer was dropped: {piece.detail}")
                one.finish_reason = _REASONS.get(piece.finish_reason, one.finish_reason)
                call.tokens += len(piece.token_ids)
    except BackendError as error:
        raise failed(error) from None
    for one, parts in zip(written, rows, strict=True):
        one.rows = join_rows(parts) if parts else None
    return written


def _continuation(
    request: TextRequest, prompt_ids: list[int], max_tokens: int, teacher: Teacher, max_tokens_in_flight: int
) -> ContinuationRequest:
    """What gRPC's Generate would be asked, checked as there."""
    try:
        message = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt_ids),
            max_tokens=max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            n=request.n,
            # Rows tell of the drawn token, too, so that one entry is needed for none.
            top_k=0 if request.logprobs is None else max(1, request.logprobs),
            stop=request.stop,
        )
    except (ValueError, OverflowError):
        raise invalid("prompt", "or max_tokens, n or logprobs has a number out of range") from None
    try:
        return validation.generation(message, teacher.description, teacher.tokenizer, max_tokens_in_flight)
    except ApiError as error:
        raise http_error_of(error, _NAMES) from None
