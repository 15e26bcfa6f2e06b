"""The teacher's rows for given sequences, asked for in the background."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import grpc
from torch import Tensor

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.trainer.teacher.connection import TeacherLink


@dataclass
class CacheCount:
    """Sequences and rows so far, and how many of each came from the gateway's cache."""

    sequences: int = 0
    hits: int = 0
    rows: int = 0
    rows_from_cache: int = 0


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

    def ask(self, sequences: Sequence[Tensor]) -> Future[list[SparseRows]]:
        """Asks for rows of sequences, int64 [L] each; :meth:`take` waits for them, in the order of the sequences."""
        return self._link.submit(self._score([s.tolist() for s in sequences]))

    def take(self, asked: Future[list[SparseRows]]) -> list[SparseRows]:
        """Waits for what was asked.

        Raises:
            TrainerError: the teacher refused.
            TeacherLostError: it stayed away longer than the patience.
            Interrupted: the link's ``stop`` said so meanwhile.
        """
        return self._link.wait(asked)

    async def _score(self, sequences: list[list[int]]) -> list[SparseRows]:
        rows: list[SparseRows | None] = [None] * len(sequences)

        async def ask_missing() -> None:
            missing = [i for i, r in enumerate(rows) if r is None]
            refused: TeacherError | None = None
            # Answers come in any order, and those that came before a stream broke are kept: a gateway that is lost in
            # the middle of a batch costs the sequences that it had not answered, and each is counted once.
            async for scored in self._link.client.score_batch(
                [sequences[i] for i in missing], self._top_k, self._dtype
            ):
                if scored.rows is None:
                    assert scored.error is not None
                    refused = scored.error
                    continue
                rows[missing[scored.index]] = scored.rows
                self._count(scored.rows, scored.provenance.cache_hit)
            if refused is not None:
                raise refused
            if None in rows:
                raise TeacherError(grpc.StatusCode.UNAVAILABLE, "the stream ended before every sequence was answered")

        # Waiting requests enter in the order in which they were asked: the next step's rows come before later ones'.
        async with self._open:
            await self._link.retried(ask_missing)
        return [r for r in rows if r is not None]

    def _count(self, rows: SparseRows, hit: bool) -> None:
        self.cache.sequences += 1
        self.cache.hits += hit
        self.cache.rows += len(rows)
        self.cache.rows_from_cache += len(rows) * hit
