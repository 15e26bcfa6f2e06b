"""The teacher's rows for given sequences, asked for in the background."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import grpc
from torch import Tensor

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.trainer.teacher.connection import TeacherLink

# What is the matter with one sequence or prompt, not with the teacher: it stays so, however often it is asked.
ONES_OWN_FAULT = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})
# A teacher that breaks on a sequence may have been out of memory just then.
_SECONDS_BEFORE_LAST_TRY = 1.0

Answer = SparseRows | TeacherError


@dataclass
class CacheCount:
    """Sequences and rows so far, and how many of each came from the gateway's cache."""

    sequences: int = 0
    hits: int = 0
    rows: int = 0
    rows_from_cache: int = 0


class RowSource(Protocol):
    """Rows for given sequences, from a gateway or from where they were kept.

    Attributes:
        cache: what was asked for so far; a resumed run puts that of the earlier process there.
    """

    cache: CacheCount

    def ask(self, sequences: Sequence[Tensor]) -> Future[list[Answer]]:
        """Asks for rows of sequences, int64 [L] each; :meth:`take` waits for them, in the order of the sequences."""

    def take(self, asked: Future[list[Answer]]) -> list[Answer]:
        """Waits for what was asked: rows, or why the teacher fails on that sequence for good.

        Raises:
            TrainerError: there are none to be had, and why.
            TeacherLostError: the gateway stayed away longer than the patience.
            Interrupted: asked to stop meanwhile.
        """


class TeacherRows:
    """A gateway's rows for given sequences.

    Args:
        link: to the gateway.
        top_k: entries per row.
        dtype: how logprobs travel.
        in_flight: requests that may be open at once; more wait, in their order.

    Attributes:
        cache: counts so far; a resumed run puts those of the earlier process there.
    """

    def __init__(self, link: TeacherLink, top_k: int, dtype: LogprobDtype = "float16", in_flight: int = 2) -> None:
        self._link, self._top_k, self._dtype = link, top_k, dtype
        self._open = asyncio.Semaphore(in_flight)
        self.cache = CacheCount()

    def ask(self, sequences: Sequence[Tensor]) -> Future[list[Answer]]:
        return self._link.submit(self._score([s.tolist() for s in sequences]))

    def take(self, asked: Future[list[Answer]]) -> list[Answer]:
        return self._link.wait(asked)

    async def _score(self, sequences: list[list[int]]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(sequences)

        async def ask_missing() -> None:
            missing = [i for i, answer in enumerate(answers) if answer is None]
            refused: TeacherError | None = None
            # Answers come in any order, and those that came before a stream broke are kept: a gateway that is lost in
            # the middle of a batch costs the sequences that it had not answered, and each is counted once.
            async for scored in self._link.client.score_batch(
                [sequences[i] for i in missing],
                self._top_k,
                self._dtype,
                expected_revision=self._link.revision,
            ):
                if scored.rows is not None:
                    answers[missing[scored.index]] = scored.rows
                    self._count(scored.rows, scored.provenance.cache_hit)
                    continue
                assert scored.error is not None
                if scored.error.code in ONES_OWN_FAULT:
                    answers[missing[scored.index]] = scored.error
                else:
                    refused = scored.error
            if refused is not None:
                raise refused
            if None in answers:
                raise TeacherError(grpc.StatusCode.UNAVAILABLE, "the stream ended before every sequence was answered")

        if not sequences:
            return []
        # Waiting requests enter in the order in which they were asked: the next step's rows come before later ones'.
        async with self._open:
            await self._link.retried(ask_missing)
            if broken := [i for i, answer in enumerate(answers) if _may_be_chance(answer)]:
                await asyncio.sleep(_SECONDS_BEFORE_LAST_TRY)
                for i in broken:
                    answers[i] = None
                await self._link.retried(ask_missing)
        return [answer for answer in answers if answer is not None]

    def _count(self, rows: SparseRows, hit: bool) -> None:
        self.cache.sequences += 1
        self.cache.hits += hit
        self.cache.rows += len(rows)
        self.cache.rows_from_cache += len(rows) * hit


def _may_be_chance(answer: Answer | None) -> bool:
    return isinstance(answer, TeacherError) and answer.code is not grpc.StatusCode.INVALID_ARGUMENT
