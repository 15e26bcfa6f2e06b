"""Continuing a prompt n times, where each continuation is a request of its own."""

import asyncio
import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from latentforge.gateway.backends.base import ContinuationRequest, LoadedBackend, Piece
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.tokenizer import TextTokenizer

T = TypeVar("T")

FINISH_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


class ContinuingBackend(LoadedBackend, ABC):
    """Continues a prompt n times, each as a request of its own."""

    async def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        async for piece in continuations(request, lambda index, seed: self._continue(request, index, seed)):
            yield piece

    @abstractmethod
    async def _continue(self, request: ContinuationRequest, index: int, seed: int) -> Piece:
        """The whole of continuation number ``index``.

        Raises:
            BackendError: the teacher failed.
        """


def seed_of(seed: int, index: int) -> int:
    """The seed of one continuation: those of one request are independent, and no two requests share any."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


async def continuations(
    request: ContinuationRequest, continue_one: Callable[[int, int], Coroutine[Any, Any, Piece]]
) -> AsyncIterator[Piece]:
    """Each continuation as soon as it is whole; those that are left are cancelled when the caller stops or one fails.

    Every one is a request of its own: vLLM would give number i of a request the seed s+i, which another request's
    continuation has too.

    Args:
        continue_one: from its number and its seed to the continuation.
    """
    seed = secrets.randbits(63) if request.seed is None else request.seed
    tasks = [asyncio.create_task(continue_one(index, seed_of(seed, index))) for index in range(request.n)]
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        await _cancel(tasks)


def text_of(
    token_ids: Sequence[int],
    reason: pb.FinishReason.ValueType,
    stop_reason: int | str | None,
    request: ContinuationRequest,
    tokenizer: TextTokenizer,
) -> str:
    """The text of a continuation, which ends before what ended it.

    Made here, since vLLM's begins with characters that the prompt left incomplete.

    Args:
        stop_reason: the string or the token that ended it; None for the model's own end-of-text.
    """
    ended_by_token = reason == pb.FINISH_REASON_STOP and not isinstance(stop_reason, str)
    text = tokenizer.decode(token_ids[:-1] if ended_by_token else token_ids, skip_special=True, goes_on=True)
    stop, _ = tokenizer.stops(request.stop)
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(found, default=len(text))]


async def gather(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first failure, or the caller's leaving, cancels the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


def stops(request: ContinuationRequest, tokenizer: TextTokenizer) -> dict[str, Any]:
    """As vLLM and SGLang call what ends a continuation."""
    stop, stop_ids = tokenizer.stops(request.stop)
    return {"stop": stop, "stop_token_ids": sorted(request.end_ids | stop_ids)}


async def _cancel(tasks: Sequence["asyncio.Task[T]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
