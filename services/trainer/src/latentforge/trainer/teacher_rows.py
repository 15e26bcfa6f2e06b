"""The teacher's rows for the batches ahead: asked for in the background, aligned with the tokens they are for."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.core.sparse_rows import LogprobDtype, SparseRows
from latentforge.core.teacher_client import TeacherClient, TeacherError
from latentforge.model.chunks import shift_right
from latentforge.model.losses import KdTargets
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.interrupt import Interrupted

log = logging.getLogger(__name__)

T = TypeVar("T")

_NO_LOGPROB = np.float32(-1e4)
_RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}


@dataclass
class CacheCount:
    """Sequences and rows so far, and how many of each came from the gateway's cache."""

    sequences: int = 0
    hits: int = 0
    rows: int = 0
    rows_from_cache: int = 0


class TeacherLostError(TrainerError):
    """The gateway stayed away longer than the patience."""


class TeacherRows:
    """A gateway's rows; use as a context manager.

    The client lives in a thread of its own with an event loop, so that requests go on while a step computes.

    Args:
        target: host:port of the gateway.
        top_k: entries per row.
        dtype: how logprobs travel.
        ahead: batches asked for before they are needed.
        in_flight: of those, requests that may be open at once, in order.
        patience: seconds that a lost gateway is waited for.
        stop: asked while waiting; True raises Interrupted.
        cache: counts of an earlier process, counted on.
    """

    def __init__(
        self,
        target: str,
        top_k: int,
        *,
        dtype: LogprobDtype = "float16",
        ahead: int = 6,
        in_flight: int = 2,
        patience: float = 300.0,
        stop: Callable[[], bool] = lambda: False,
        cache: CacheCount | None = None,
    ) -> None:
        self._target, self._top_k, self._dtype = target, top_k, dtype
        self._ahead, self._patience, self._stop = ahead, patience, stop
        self._in_flight = in_flight
        self.cache = cache or CacheCount()
        self._lost_since: float | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-rows", daemon=True)
        self._thread.start()
        self._client, self._open = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self) -> tuple[TeacherClient, asyncio.Semaphore]:
        return TeacherClient(self._target), asyncio.Semaphore(self._in_flight)

    async def _disconnect(self) -> None:
        # What nobody waits for any more must not outlive the loop.
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def teacher(self, fingerprint: str, vocab_size: int) -> pb.GetTeacherResponse:
        """Asks what the teacher is, and refuses one that this run cannot learn from.

        Args:
            fingerprint: of the tokenizer that packed the data.
            vocab_size: ids of the models.

        Raises:
            TrainerError: another tokenizer (both fingerprints), too small a max_top_k, too wide an output layer, or
                no scoring.
        """
        answer = self._wait(asyncio.run_coroutine_threadsafe(self._retried(self._client.teacher), self._loop))
        who = f"the teacher {answer.model} ({answer.backend}) at {self._target}"
        if not answer.can_score:
            raise TrainerError(
                f"{who} cannot score given text{', only generate' if answer.can_generate else ''}; "
                "set TEACHER_BACKEND of the gateway to embedded, transformers, vllm-local or vllm-remote, which score"
            )
        if answer.tokenizer_fingerprint != fingerprint:
            raise TrainerError(
                f"{who} has the tokenizer fingerprint {answer.tokenizer_fingerprint}, the data was packed with "
                f"{fingerprint}; "
                "set TOKENIZER_PATH to the teacher's tokenizer and pack again"
            )
        if answer.max_top_k < self._top_k:
            raise TrainerError(
                f"{who} gives at most {answer.max_top_k} entries a row; teacher.top_k={self._top_k} asks for more"
            )
        if answer.vocab_size > vocab_size:
            raise TrainerError(
                f"{who} has an output layer of {answer.vocab_size} ids, the models have {vocab_size}; "
                f"set the recipe's vocab_size to {answer.vocab_size}"
            )
        return answer

    def cache_stats(self) -> pb.GetCacheStatsResponse:
        """The gateway's own counts."""
        return self._wait(asyncio.run_coroutine_threadsafe(self._retried(self._client.cache_stats), self._loop))

    def ask(self, sequences: Sequence[Tensor]) -> Future[list[SparseRows]]:
        """Asks for rows of sequences, int64 [L] each; :meth:`take` waits for them, in the order of the sequences."""
        return asyncio.run_coroutine_threadsafe(self._score([s.tolist() for s in sequences]), self._loop)

    def take(self, asked: Future[list[SparseRows]]) -> list[SparseRows]:
        return self._wait(asked)

    def stream(self, batches: Iterator[Sequence[Tensor]]) -> Iterator[list[SparseRows]]:
        """Rows for one batch of sequences after another; the first ``ahead`` are asked for at once.

        Raises:
            TrainerError: the teacher refused.
            TeacherLostError: it stayed away longer than the patience.
            Interrupted: ``stop`` said so while rows were waited for.
        """
        pending = deque(self.ask(batch) for batch in islice(batches, self._ahead))

        def taken() -> Iterator[list[SparseRows]]:
            while pending:
                rows = self._wait(pending.popleft())
                pending.extend(self.ask(batch) for batch in islice(batches, 1))
                yield rows

        return taken()

    async def _score(self, sequences: list[list[int]]) -> list[SparseRows]:
        rows: list[SparseRows | None] = [None] * len(sequences)

        async def ask_missing() -> None:
            missing = [i for i, r in enumerate(rows) if r is None]
            refused: TeacherError | None = None
            async for scored in self._client.score_batch([sequences[i] for i in missing], self._top_k, self._dtype):
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
            await self._retried(ask_missing)
        return [r for r in rows if r is not None]

    def _count(self, rows: SparseRows, hit: bool) -> None:
        self.cache.sequences += 1
        self.cache.hits += hit
        self.cache.rows += len(rows)
        self.cache.rows_from_cache += len(rows) * hit

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """Calls again, more and more seldom, while the gateway is lost, up to the patience."""
        pause = 0.5
        while True:
            try:
                answer = await call()
            except TeacherError as error:
                now = time.monotonic()
                if error.code not in _RETRIED:
                    raise TrainerError(f"the teacher at {self._target} refused: {error}") from None
                if self._lost_since is None:
                    self._lost_since = now
                    log.warning("teacher lost (%s); trying again for %.0f s", error.message, self._patience)
                if now - self._lost_since + pause > self._patience:
                    raise TeacherLostError(
                        f"the teacher stayed away for {now - self._lost_since:.0f} s: {error.message}. "
                        "What was trained is saved; start the gateway and run the same command to go on"
                    ) from None
                await asyncio.sleep(pause)
                pause = min(2 * pause, 10.0)
            else:
                if self._lost_since is not None:
                    log.warning("teacher back after %.0f s", time.monotonic() - self._lost_since)
                    self._lost_since = None
                return answer

    def _wait(self, future: Future[T]) -> T:
        while not self._stop():
            done, _ = wait([future], timeout=0.2)
            if done:
                return future.result()
        future.cancel()
        raise Interrupted


def kd_targets(rows: Sequence[SparseRows], length: int, pads: Sequence[int]) -> KdTargets:
    """Rows of a batch as tensors that lie over its tokens, shifted like them.

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
    blocks = [_block(r, length, p) for r, p in zip(rows, pads, strict=True)]
    return KdTargets(*(torch.stack(tensors) for tensors in zip(*blocks, strict=True)))


def _block(rows: SparseRows, length: int, pads: int) -> tuple[Tensor, ...]:
    first, stop = rows.first_position, rows.first_position + len(rows)
    if stop > length:
        raise ValueError(f"rows for tokens {first}..{stop - 1} of a sequence of {length}")
    # Entries beyond counts mean nothing; id 0 with no probability is harmless wherever they are gathered.
    void = np.arange(rows.top_k)[None] >= rows.counts[:, None]
    columns: list[tuple[NDArray[Any], float | bool]] = [
        (np.where(void, 0, rows.ids).astype(np.int64), 0),
        (np.where(void, _NO_LOGPROB, rows.logprobs), 0.0),
        (rows.counts.astype(np.int64), 0),
        (rows.realised_logprobs.astype(np.float32), 0.0),
        (rows.tail_mass.astype(np.float32), 0.0),
        (np.ones(len(rows), dtype=np.bool_), False),
    ]
    placed = []
    for values, fill in columns:
        whole = torch.full((length, *values.shape[1:]), fill, dtype=torch.from_numpy(values[:0]).dtype)
        whole[first:stop] = torch.from_numpy(values)
        placed.append(shift_right(whole, pads, fill))
    return tuple(placed)
