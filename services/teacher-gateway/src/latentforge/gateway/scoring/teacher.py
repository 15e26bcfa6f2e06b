"""The gateway's core: one loaded teacher with its cache. Knows nothing of gRPC."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentforge.core.logs import log_exception
from latentforge.core.tracing import span
from latentforge.gateway.backends.base import (
    Backend,
    BackendError,
    CandidateIds,
    ContinuationRequest,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.cache.base import Cache, StoreStats
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.callers import current_caller
from latentforge.gateway.scoring.dispatcher import ScoringLimits
from latentforge.gateway.scoring.fitting import fitted
from latentforge.gateway.scoring.inflight import QueueFullError
from latentforge.gateway.scoring.quota import Charge, QuotaError
from latentforge.gateway.scoring.scorer import Scorer
from latentforge.gateway.scoring.stats import ScoringStats
from latentforge.gateway.scoring.token_budget import TokenBudget
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.sparse_rows import LogprobDtype, PackedRows, SparseRows
from latentforge.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

# Of one batch call: bounds the answers that wait for a slow reader.
_SEQUENCES_UNDER_WAY = 256
_WARM_UP_TOKENS = 128
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class SequenceAnswer:
    """Rows of one sequence, where they came from and how long the gateway took.

    ``candidate_logprobs``: float32 [rows, candidates] where candidates were asked about. ``charged``: tokens that the
    teacher computed for this answer; none for rows of the cache, and for a sequence that several wait for, once.
    """

    rows: SparseRows | PackedRows
    cache_hit: bool
    milliseconds: float
    candidate_logprobs: NDArray[np.float32] | None = None
    charged: int = 0


@dataclass(frozen=True)
class BatchAnswer:
    """The answer for one sequence of a batch, or why there is none."""

    index: int
    answer: SequenceAnswer | None
    error: BackendError | None


@dataclass(frozen=True)
class CacheReport:
    """What the cache did since the gateway started.

    Attributes:
        store: None when the store does not answer, or is left alone since it did not.
        errors: lookups and writes that failed.
        dropped_writes: sequences not kept because too many were queued to be written, or the store takes none.
        spent_usd: what the teacher's answers cost at list price.
    """

    kind: str
    scoring: ScoringStats
    store: StoreStats | None
    errors: int
    dropped_writes: int
    spent_usd: float


@dataclass(frozen=True)
class HealthReport:
    """What does not work now, a sentence each; empty where it does."""

    teacher: str = ""
    cache: str = ""

    @property
    def problems(self) -> list[str]:
        return [problem for problem in (self.teacher, self.cache) if problem]


class Teacher:
    """Scores, continues and tokenises. Arguments were validated by whoever calls."""

    def __init__(self, backend: Backend, store: Cache, settings: GatewaySettings, metrics: Metrics) -> None:
        self._backend = backend
        self._cache = GuardedCache(store, metrics, max_queued_bytes=settings.cache_write_queue_mb * _MEGABYTE)
        limits = ScoringLimits(
            batch_tokens=settings.max_batch_tokens,
            tokens_in_flight=settings.max_tokens_in_flight,
            queued_tokens=settings.max_queued_tokens,
            queued_sequences=settings.max_queued_sequences,
        )
        recent_bytes = settings.cache_memory_mb * _MEGABYTE
        self._metrics = metrics
        self._max_text_bytes = settings.max_text_bytes
        self._scorer = Scorer(backend, self._cache, metrics, limits, recent_bytes=recent_bytes)
        # Apart from scoring's: a long continuation must not keep everybody from scoring.
        self._generation_budget = TokenBudget(settings.max_tokens_in_flight)
        self._teacher_problem = ""

    @property
    def description(self) -> TeacherDescription:
        about = self._backend.description
        return about if self._max_text_bytes is None else replace(about, max_text_bytes=self._max_text_bytes)

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._backend.tokenizer

    @property
    def health(self) -> HealthReport:
        """As of the last :meth:`check`; of the cache, as of its last lookup and write."""
        return HealthReport(self._teacher_problem, self._cache.problem)

    async def check(self) -> HealthReport:
        """Finds out what works now. Takes as long as the backend takes to say so, or to be given up."""
        try:
            await self._backend.check()
            self._teacher_problem = ""
        except BackendError as error:
            self._teacher_problem = f"the teacher failed: {error}"
        except Exception as error:
            log_exception(logger, "the check of the backend failed in an unknown way", error)
            self._teacher_problem = f"the teacher's check failed: {type(error).__name__}"
        await self._cache.check()
        return self.health

    async def warm_up(self) -> None:
        """Runs the backend once before the first caller has to wait for that."""
        description = self.description
        if description.can_score:
            length = min(_WARM_UP_TOKENS, description.max_sequence_length)
            await self._scorer.warm_up(np.arange(length, dtype=np.uint32) % description.vocab_size)

    async def score(
        self,
        token_ids: TokenIds,
        top_k: int,
        dtype: LogprobDtype,
        *,
        packed: bool = False,
        candidates: CandidateIds | None = None,
    ) -> SequenceAnswer:
        """Rows for tokens 1 … L−1 of uint32 ids [L]; PackedRows if they are wanted, or at hand and as good.

        With candidates, uint32 [L − 1, m], they are computed and not kept.

        Raises:
            BackendError: the teacher failed, too much is queued for it already, or (QuotaError) the caller had his.
        """
        with self._charged(len(token_ids)) as charge:
            answer = await self._score(token_ids, top_k, dtype, packed=packed, candidates=candidates)
            charge.used += answer.charged
        return answer

    async def _score(
        self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype, *, packed: bool, candidates: CandidateIds | None
    ) -> SequenceAnswer:
        started = time.perf_counter()
        scored = await self._scorer.score(token_ids, top_k, dtype, packed=packed, candidates=candidates)
        milliseconds = 1000 * (time.perf_counter() - started)
        charged = 0 if scored.cache_hit or scored.joined else len(token_ids)
        return SequenceAnswer(scored.rows, scored.cache_hit, milliseconds, scored.candidate_logprobs, charged)

    async def score_many(
        self,
        sequences: Sequence[tuple[int, TokenIds]],
        top_k: int,
        dtype: LogprobDtype,
        *,
        packed: bool = False,
        candidates: Mapping[int, CandidateIds] | None = None,
    ) -> AsyncGenerator[BatchAnswer, None]:
        """Scores (index, ids) pairs and yields each answer when it is there. Stops working when the caller stops.

        ``candidates`` are those of some of them, by index, as in :meth:`score`.

        While the gateway's queue is full, what it refused is tried again when something of this call is finished.

        Raises:
            QuotaError: the caller has had all that he may have for now.
        """
        with self._charged(sum(len(token_ids) for _, token_ids in sequences)) as charge:
            async with aclosing(self._score_many(sequences, top_k, dtype, packed, candidates or {})) as answers:
                async for scored in answers:
                    if scored.answer is not None:
                        charge.used += scored.answer.charged
                    yield scored

    async def _score_many(
        self,
        sequences: Sequence[tuple[int, TokenIds]],
        top_k: int,
        dtype: LogprobDtype,
        packed: bool,
        candidates: Mapping[int, CandidateIds],
    ) -> AsyncGenerator[BatchAnswer, None]:
        queued = deque(sequences)
        finished: asyncio.Queue[tuple[int, TokenIds, asyncio.Task[SequenceAnswer]]] = asyncio.Queue()
        running: set[asyncio.Task[SequenceAnswer]] = set()
        most = _SEQUENCES_UNDER_WAY

        def start(index: int, token_ids: TokenIds) -> None:
            work = self._score(token_ids, top_k, dtype, packed=packed, candidates=candidates.get(index))
            task = asyncio.create_task(work)
            running.add(task)
            task.add_done_callback(lambda task: finished.put_nowait((index, token_ids, task)))

        try:
            while queued or running:
                while queued and len(running) < most:
                    index, token_ids = queued.popleft()
                    started = time.perf_counter()
                    # What is at hand needs no task.
                    recent = None if index in candidates else self._scorer.recall(token_ids, top_k, dtype)
                    if recent is None:
                        start(index, token_ids)
                        continue
                    rows = await fitted(recent, top_k, dtype, packed=packed)
                    yield BatchAnswer(index, SequenceAnswer(rows, True, 1000 * (time.perf_counter() - started)), None)
                if not running:
                    continue
                index, token_ids, task = await finished.get()
                running.discard(task)
                try:
                    answer = BatchAnswer(index, task.result(), None)
                    most = min(_SEQUENCES_UNDER_WAY, most + 1)
                except QueueFullError as error:
                    if running:
                        queued.appendleft((index, token_ids))
                        most = len(running)
                        continue
                    answer = BatchAnswer(index, None, error)
                except BackendError as error:
                    answer = BatchAnswer(index, None, error)
                yield answer
        finally:
            for task in running:
                task.cancel()

    async def generate(self, request: ContinuationRequest) -> AsyncGenerator[Piece, None]:
        """Continues a prompt.

        Raises:
            BackendError: the teacher failed.
        """
        tokens = request.n * (len(request.prompt_ids) + request.max_tokens)
        with self._charged(tokens) as charge:
            async with self._generation_budget.take(tokens):
                # A teacher that fails before it has begun has computed nothing.
                prompt = request.n * len(request.prompt_ids)
                with span("backend generate", {"continuations": request.n, "tokens": tokens}):
                    async for piece in self._backend.generate(request):
                        charge.used += prompt + len(piece.token_ids)
                        prompt = 0
                        yield piece

    @contextmanager
    def _charged(self, tokens: int) -> Iterator[Charge]:
        """Around a call that may use so many tokens; its caller's quota and metrics are told how many it did."""
        caller = current_caller()
        if not caller.named:
            yield Charge()
            return
        try:
            with nullcontext(Charge()) if caller.quota is None else caller.quota.charged(tokens) as charge:
                try:
                    yield charge
                finally:
                    self._metrics.key_tokens.labels(caller.name).inc(charge.used)
        except QuotaError:
            self._metrics.key_refusals.labels(caller.name).inc()
            raise

    async def cache_report(self) -> CacheReport:
        store = await self._cache.stats()
        cache = self._cache
        spent = self._backend.spent_usd
        return CacheReport(cache.kind, self._scorer.stats, store, cache.errors, cache.dropped_writes, spent)

    async def close(self) -> None:
        """Waits for what is being computed, then lets go of cache and backend."""
        await self._scorer.close()
        await self._backend.close()
        await self._cache.close()
