"""The gateway's core: one loaded teacher with its cache. Knows nothing of gRPC."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentforge.core.sparse_rows import LogprobDtype, SparseRows
from latentforge.gateway.backends.base import (
    Backend,
    BackendError,
    Generation,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.budget import TokenBudget
from latentforge.gateway.cache.base import Cache, CacheError, StoreStats
from latentforge.gateway.scoring import Scorer, ScoringStats
from latentforge.gateway.settings import GatewaySettings
from latentforge.gateway.tokenizer import TeacherTokenizer

# Of one batch call: bounds the answers that wait for a slow reader.
_SEQUENCES_UNDER_WAY = 256
_WARM_UP_TOKENS = 128


@dataclass(frozen=True)
class Answer:
    """Rows of one sequence, where they came from and how long the gateway took."""

    rows: SparseRows
    cache_hit: bool
    milliseconds: float


@dataclass(frozen=True)
class BatchAnswer:
    """The answer for one sequence of a batch, or why there is none."""

    index: int
    answer: Answer | None
    error: BackendError | None


@dataclass(frozen=True)
class CacheReport:
    """What the cache did since the gateway started; ``store`` is None when the store does not answer."""

    kind: str
    scoring: ScoringStats
    store: StoreStats | None


class Teacher:
    """Scores, continues and tokenises. Arguments were validated by whoever calls."""

    def __init__(self, backend: Backend, cache: Cache, settings: GatewaySettings) -> None:
        self._backend = backend
        self._cache = cache
        self._scorer = Scorer(
            backend,
            cache,
            max_batch_tokens=settings.max_batch_tokens,
            max_tokens_in_flight=settings.max_tokens_in_flight,
        )
        # Apart from scoring's: a long continuation must not keep everybody from scoring.
        self._generation_budget = TokenBudget(settings.max_tokens_in_flight)

    @property
    def description(self) -> TeacherDescription:
        return self._backend.description

    @property
    def tokenizer(self) -> TeacherTokenizer:
        return self._backend.tokenizer

    async def warm_up(self) -> None:
        """Runs the backend once before the first caller has to wait for that."""
        description = self.description
        if description.can_score:
            length = min(_WARM_UP_TOKENS, description.max_sequence_length)
            await self._scorer.warm_up(np.arange(length, dtype=np.uint32) % description.vocab_size)

    async def score(self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype) -> Answer:
        """Rows for tokens 1 … L−1 of uint32 ids [L].

        Raises:
            BackendError: the teacher failed.
        """
        started = time.perf_counter()
        scored = await self._scorer.score(token_ids, top_k, dtype)
        return Answer(scored.rows, scored.cache_hit, 1000 * (time.perf_counter() - started))

    async def score_many(
        self, sequences: Sequence[tuple[int, TokenIds]], top_k: int, dtype: LogprobDtype
    ) -> AsyncIterator[BatchAnswer]:
        """Scores (index, ids) pairs and yields each answer when it is there. Stops working when the caller stops."""
        waiting = deque(sequences)
        finished: asyncio.Queue[tuple[int, asyncio.Task[Answer]]] = asyncio.Queue()
        running: set[asyncio.Task[Answer]] = set()

        def start(index: int, token_ids: TokenIds) -> None:
            task = asyncio.create_task(self.score(token_ids, top_k, dtype))
            running.add(task)
            task.add_done_callback(lambda task: finished.put_nowait((index, task)))

        try:
            while waiting or running:
                while waiting and len(running) < _SEQUENCES_UNDER_WAY:
                    start(*waiting.popleft())
                index, task = await finished.get()
                running.discard(task)
                try:
                    answer = BatchAnswer(index, task.result(), None)
                except BackendError as error:
                    answer = BatchAnswer(index, None, error)
                yield answer
        finally:
            for task in running:
                task.cancel()

    async def generate(self, request: Generation) -> AsyncIterator[Piece]:
        """Continues a prompt.

        Raises:
            BackendError: the teacher failed.
        """
        tokens = request.n * (len(request.prompt_ids) + request.max_tokens)
        async with self._generation_budget.take(tokens):
            async for piece in self._backend.generate(request):
                yield piece

    async def cache_report(self) -> CacheReport:
        try:
            store = await self._cache.stats()
        except CacheError:
            store = None
        return CacheReport(self._cache.kind, self._scorer.stats, store)

    async def close(self) -> None:
        """Waits for what is being computed, then lets go of cache and backend."""
        await self._scorer.close()
        await self._backend.close()
        await self._cache.close()
