"""Continuations of prompts for /v1/completions."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from latentforge.gateway.backends.base import BackendError, ContinuationRequest
from latentforge.gateway.http.call import HttpCall
from latentforge.gateway.http.completion_request import DEFAULT_MAX_TOKENS, TextRequest
from latentforge.gateway.http.errors import HttpError, http_error_of, invalid
from latentforge.gateway.http.scores import failed
from latentforge.gateway.rpc import validation
from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.scoring.teacher import Teacher
from latentforge.gateway.scoring.token_budget import TokenBudget
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows, join_rows

_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
# Of one request: each step of the teacher's is of one prompt, and others' come in between.
_PROMPTS_AT_ONCE = 8


@dataclass
class WrittenText:
    """One continuation; nothing was written where there are no ids."""

    index: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    rows: SparseRows | None = None
    finish_reason: str = "length"


def continuations(
    request: TextRequest, prompts: Sequence[list[int]], teacher: Teacher, max_tokens_in_flight: int
) -> list[ContinuationRequest]:
    """What gRPC's Generate would be asked for each prompt, checked as there. Takes a thread's time.

    Raises:
        HttpError: a field is out of range.
    """
    return [_continuation(request, at, ids, teacher, max_tokens_in_flight) for at, ids in enumerate(prompts)]


async def write_all(
    asked: Sequence[ContinuationRequest], teacher: Teacher, max_tokens_in_flight: int, call: HttpCall
) -> list[list[WrittenText]]:
    """The continuations of every prompt, a few prompts at a time.

    They take half of the teacher's tokens at most, where no prompt alone needs more, so that others' find room beside
    them and wait for no more than those few.

    Raises:
        HttpError: the teacher failed; what is left is given up.
    """
    written: list[list[WrittenText]] = [[] for _ in asked]
    share = TokenBudget(max(1, max_tokens_in_flight // 2))

    async def work(left: Iterator[tuple[int, ContinuationRequest]]) -> None:
        for at, one in left:
            async with share.take(one.n * (len(one.prompt_ids) + one.max_tokens)):
                written[at] = await _write(one, at if len(asked) > 1 else None, teacher, call)

    left = iter(enumerate(asked))
    tasks = [asyncio.create_task(work(left)) for _ in range(min(_PROMPTS_AT_ONCE, len(asked)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return written


async def _write(asked: ContinuationRequest, at: int | None, teacher: Teacher, call: HttpCall) -> list[WrittenText]:
    """The continuations of one prompt; ``at`` is its place, where there are several."""
    written = [WrittenText(index) for index in range(asked.n)]
    rows: list[list[SparseRows]] = [[] for _ in written]
    try:
        async with aclosing(teacher.generate(asked)) as pieces:
            async for piece in pieces:
                one = written[piece.index]
                one.ids += piece.token_ids
                one.text += piece.text
                if piece.rows is not None:
                    rows[piece.index].append(piece.rows)
                if piece.finish_reason == pb.FINISH_REASON_DROPPED:
                    where = "" if at is None else f" (sequence {at})"
                    raise HttpError(502, "teacher_dropped", f"the teacher's answer was dropped: {piece.detail}{where}")
                one.finish_reason = _REASONS.get(piece.finish_reason, one.finish_reason)
                call.tokens += len(piece.token_ids)
    except BackendError as error:
        raise failed(error, at) from None
    for one, parts in zip(written, rows, strict=True):
        one.rows = join_rows(parts) if parts else None
    return written


def _continuation(
    request: TextRequest, at: int, prompt_ids: list[int], teacher: Teacher, max_tokens_in_flight: int
) -> ContinuationRequest:
    room = teacher.description.max_sequence_length - len(prompt_ids)
    max_tokens = min(DEFAULT_MAX_TOKENS, room) if request.max_tokens is None else request.max_tokens
    try:
        message = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt_ids),
            max_tokens=max(max_tokens, 1),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            n=request.n,
            # Rows tell of the drawn token, too, so that one entry is needed for none.
            top_k=0 if request.logprobs is None else max(1, request.logprobs),
            stop=request.stop,
        )
    except (ValueError, OverflowError):
        raise invalid(request.name_of(at), "or max_tokens, n or logprobs has a number out of range") from None
    try:
        return validation.generation(message, teacher.description, teacher.tokenizer, max_tokens_in_flight)
    except ApiError as error:
        # Fields of gRPC's request that have another name here.
        raise http_error_of(error, {"token_ids": request.name_of(at), "top_k": "logprobs"}) from None
