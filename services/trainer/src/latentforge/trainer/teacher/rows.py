"""The teacher's rows: asked for in the background, aligned with the tokens they are for."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.chunks import shift_right
from latentforge.model.sparse_kd import KdTargets
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.trainer.teacher.connection import TeacherLink

_NO_LOGPROB = -1e4


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

        async with self._open:
            await self._link.retried(ask_missing)
        return [r for r in rows if r is not None]

    def _count(self, rows: SparseRows, hit: bool) -> None:
        self.cache.sequences += 1
        self.cache.hits += hit
        self.cache.rows += len(rows)
        self.cache.rows_from_cache += len(rows) * hit


def kd_targets(rows: Sequence[SparseRows], length: int, pads: Sequence[int]) -> KdTargets:
    """Rows of a batch as tensors that lie over its tokens, shifted like them.

    Rows may hold different numbers of entries. Where ids were mapped from strings, what no id was found for belongs to
    the tail: its mass is then everything that the row's entries leave.

    Args:
        rows: one block per sequence; row r is for token first_position + r of the unshifted sequence.
        length: tokens per sequence, L.
        pads: how far each sequence was shifted right (``chunks.shift_right``).

    Returns:
        Index i holds the distribution FOR token i of the shifted batch; where no row exists (position 0, pads)
        ``has_row`` is False.

    Raises:
        ValueError: a block reaches beyond its sequence.
    """
    top_k = max(r.top_k for r in rows)
    blocks = [_block(r, length, p, top_k) for r, p in zip(rows, pads, strict=True)]
    return KdTargets(*(torch.stack(tensors) for tensors in zip(*blocks, strict=True)))


def _block(rows: SparseRows, length: int, pads: int, top_k: int) -> tuple[Tensor, ...]:
    first, stop = rows.first_position, rows.first_position + len(rows)
    if stop > length:
        raise ValueError(f"rows for tokens {first}..{stop - 1} of a sequence of {length}")
    # Entries beyond counts mean nothing; id 0 with no probability is harmless wherever they are gathered.
    void = np.arange(rows.top_k)[None] >= rows.counts[:, None]
    logprobs = np.where(void, np.float32(_NO_LOGPROB), rows.logprobs)
    tail = rows.tail_mass
    if rows.unmapped_mass is not None:
        tail = np.clip(1 - np.exp(logprobs.astype(np.float64)).sum(1), 0, 1)
    columns: list[tuple[NDArray[Any], float | bool]] = [
        (_widened(np.where(void, 0, rows.ids).astype(np.int64), top_k, 0), 0),
        (_widened(logprobs, top_k, _NO_LOGPROB), 0.0),
        (rows.counts.astype(np.int64), 0),
        (rows.realised_logprobs.astype(np.float32), 0.0),
        (tail.astype(np.float32), 0.0),
        (np.ones(len(rows), dtype=np.bool_), False),
    ]
    placed = []
    for values, fill in columns:
        whole = torch.full((length, *values.shape[1:]), fill, dtype=torch.from_numpy(values[:0]).dtype)
        whole[first:stop] = torch.from_numpy(values)
        placed.append(shift_right(whole, pads, fill))
    return tuple(placed)


def _widened(values_nk: NDArray[Any], top_k: int, fill: float) -> NDArray[Any]:
    return np.pad(values_nk, ((0, 0), (0, top_k - values_nk.shape[1])), constant_values=fill)
