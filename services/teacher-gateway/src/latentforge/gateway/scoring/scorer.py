"""Scoring one sequence at a time for the callers, in batches for the cache and the backend."""

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from latentforge.core.logs import log_exception
from latentforge.gateway.backends.base import Backend, BackendError, FailureKind, TokenIds
from latentforge.gateway.cache.base import KeyMaker
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.cache.memory import RecentRows
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.inflight import Flight, QueueFullError, ScoredRows, WaitingRoom, Work
from latentforge.gateway.scoring.stats import BusyClock, ScoringStats
from latentforge.gateway.scoring.token_budget import TokenBudget
from latentforge.gateway.telemetry import span
from latentforge.teacher_client.sparse_rows import CorruptRowsError, LogprobDtype, PackedRows, SparseRows

logger = logging.getLogger(__name__)

_KEYS_PER_LOOKUP = 16
_PARALLEL_LOOKUPS = 4
_SECONDS_BETWEEN_WARNINGS = 60.0
_FLUSH_SECONDS = 5.0
# How much the last batch counts in what a batch is said to take.
_LAST_BATCH = 0.2
_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 1.0, 30.0
# Failures that one sequence of a batch can cause for all of it.
_MAY_BE_ONE = (FailureKind.REFUSED, FailureKind.BROKEN)


@dataclass(frozen=True)
class ScoringLimits:
    """How much is done and waits at one time.

    Attributes:
        batch_tokens: of one forward pass, padding included.
        tokens_in_flight: that the backend is given at one time.
        queued_tokens: that wait for the backend.
        queued_sequences: under way, lookups included.
    """

    batch_tokens: int
    tokens_in_flight: int
    queued_tokens: int
    queued_sequences: int


class Scorer:
    """Looks rows up, computes what is missing and keeps it. Identical sequences in flight are computed once.

    Flights wait in two queues: for the cache, then, if they are not in it, for the backend. Whatever waits at the same
    time is looked up or computed together, whichever calls it came from. A flight that nobody waits for any more is
    dropped; a call of the backend is cancelled when nobody waits for any of its flights.
    """

    def __init__(
        self, backend: Backend, cache: GuardedCache, metrics: Metrics, limits: ScoringLimits, *, recent_bytes: int = 0
    ) -> None:
        self._backend = backend
        self._cache = cache
        self._limits = limits
        self._keys = KeyMaker(backend.description)
        self._recent = RecentRows(recent_bytes if cache.kind != "none" else 0)
        self._budget = TokenBudget(limits.tokens_in_flight)
        self._flights: dict[bytes, Flight] = {}
        self._to_look_up: deque[Flight] = deque()
        self._to_compute = WaitingRoom(limits.queued_tokens)
        self._lookups = 0
        self._dispatching = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = BusyClock()
        self._batch_seconds: float | None = None
        self._warned = -_SECONDS_BETWEEN_WARNINGS
        self._rows_from = {source: metrics.rows.labels(source) for source in ("cache", "teacher")}
        self._lookup_ended = {result: metrics.lookups.labels(result) for result in ("hit", "miss", "corrupt", "error")}
        self.stats = ScoringStats()

    def recall(self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype) -> PackedRows | None:
        """Rows that this gateway gave lately, ``top_k`` of them or more; counted as a hit."""
        return self._recalled(self._keys.key(token_ids, dtype), top_k)

    async def score(self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype, *, packed: bool = False) -> ScoredRows:
        """Rows for tokens 1 … L−1 of validated ids, uint32 [L], with exactly ``top_k`` entries.

        Args:
            packed: PackedRows are wanted; else they are given where they are what the store has.

        Raises:
            BackendError: the teacher failed, or (QueueFullError) too much waits already.
        """
        key = self._keys.key(token_ids, dtype)
        if (recent := self._recalled(key, top_k)) is not None:
            return ScoredRows(await fitted(recent, top_k, dtype, packed=packed), cache_hit=True)
        flight = self._flights.get(key)
        if flight is None or flight.top_k < top_k:
            flight = self._begin(Flight(key, token_ids, top_k, dtype))
        elif flight.answer.done() and flight.answer.exception() is None:
            # Computed for somebody else and still on its way into the store: the teacher does nothing for this one.
            rows = flight.answer.result().rows
            self._count_hit(rows)
            return ScoredRows(await fitted(rows, top_k, dtype, packed=packed), cache_hit=True)
        flight.waiters += 1
        flight.packed |= packed
        try:
            # Shielded: a caller who leaves must not take the answer from the others.
            answer = await asyncio.shield(flight.answer)
        finally:
            flight.waiters -= 1
            if flight.abandoned:
                self._left(flight)
        return ScoredRows(await fitted(answer.rows, top_k, dtype, packed=packed), answer.cache_hit)

    async def warm_up(self, token_ids: TokenIds) -> None:
        """Runs the backend once, so that the first call is not the slow one and the time of a row is known."""
        top_k = min(20, self._backend.description.max_top_k)
        await self._backend.score([token_ids], top_k)
        self._clock.start()
        started = time.perf_counter()
        await self._backend.score([token_ids], top_k)
        self._batch_took(time.perf_counter() - started)
        self.stats.teacher_seconds += self._clock.stop()
        self.stats.timed_rows += len(token_ids) - 1

    async def close(self) -> None:
        """Waits for what is being computed and written."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cache.flush(_FLUSH_SECONDS)

    def _begin(self, flight: Flight) -> Flight:
        if len(self._flights) >= self._limits.queued_sequences:
            raise self._full(f"{len(self._flights)} sequences are under way (MAX_QUEUED_SEQUENCES)")
        self._flights[flight.key] = flight
        self._to_look_up.append(flight)
        if self._lookups < _PARALLEL_LOOKUPS:
            self._lookups += 1
            self._start(self._look_up())
        return flight

    def _full(self, what: str) -> QueueFullError:
        seconds = self._to_compute.tokens * self.stats.seconds_per_row
        wait = min(_MOST_RETRY_SECONDS, max(_LEAST_RETRY_SECONDS, seconds))
        return QueueFullError(f"the gateway's queue is full: {what}; ask again later or send less at a time", wait)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        # It serves many calls, so it belongs to none.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _left(self, flight: Flight) -> None:
        """The last who waited for it is gone, maybe with the answer."""
        if flight.answer.done():
            return
        if flight.work is None:
            self._to_compute.remove(flight)
            self._drop(flight)
        elif flight.work.stop_if_abandoned():
            # At once, so that nobody joins a flight that ends.
            for other in flight.work.flights:
                self._drop(other)

    async def _look_up(self) -> None:
        # Callers of the same moment add theirs first.
        await asyncio.sleep(0)
        while self._to_look_up:
            flights: list[Flight] = []
            while self._to_look_up and len(flights) < _KEYS_PER_LOOKUP:
                flight = self._to_look_up.popleft()
                if not flight.answer.done():
                    flights.append(flight)
            if not flights:
                continue
            with span("cache lookup", {"sequences": len(flights)}, within=flights[0].context):
                values = await self._cache.get_many([flight.key for flight in flights])
            for flight, value in zip(flights, values or [None] * len(flights), strict=True):
                rows = None if value is None else self._read(flight, value)
                if rows is not None:
                    self._count_hit(rows)
                    self._recent.put(flight.key, rows)
                    flight.give(ScoredRows(rows, cache_hit=True))
                    self._forget(flight)
                else:
                    if value is None:
                        self._lookup_ended["error" if values is None else "miss"].inc()
                    self.stats.misses += 1
                    self._wait_for_backend(flight)
        self._lookups -= 1

    def _read(self, flight: Flight, value: bytes) -> PackedRows | None:
        try:
            rows = PackedRows.read(value)
            if len(rows) != len(flight.token_ids) - 1 or rows.first_position != 1 or rows.dtype != flight.dtype:
                what = f"{len(rows)} {rows.dtype} rows from {rows.first_position}"
                raise CorruptRowsError(f"{what} for {len(flight.token_ids)} tokens and {flight.dtype}")
        except CorruptRowsError as error:
            self.stats.corrupt_entries += 1
            self._lookup_ended["corrupt"].inc()
            if time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
                self._warned = time.monotonic()
                logger.warning(
                    "a cache entry is dropped and computed again (%d so far): %s", self.stats.corrupt_entries, error
                )
            return None
        if rows.top_k < flight.top_k:
            self._lookup_ended["miss"].inc()
            return None
        return rows

    def _wait_for_backend(self, flight: Flight) -> None:
        if flight.answer.done():
            return
        if not self._to_compute.has_room_for(flight):
            flight.fail(self._full(f"{self._to_compute.tokens} tokens wait (MAX_QUEUED_TOKENS)"))
            self._forget(flight)
            return
        self._to_compute.add(flight)
        if not self._dispatching:
            self._dispatching = True
            self._start(self._dispatch())

    async def _dispatch(self) -> None:
        """Hands batches to the backend for as long as flights wait and the token budget has room."""
        # Flights that were looked up together belong together.
        await asyncio.sleep(0)
        while batch := self._to_compute.next_batch(self._limits.batch_tokens):
            entered = asyncio.get_running_loop().create_future()
            self._start(self._compute(batch, entered))
            await entered
        self._dispatching = False

    async def _compute(self, batch: Sequence[Flight], entered: asyncio.Future[None]) -> None:
        async with self._budget.take(sum(len(f.token_ids) for f in batch)):
            entered.set_result(None)
            batch = [f for f in batch if not f.answer.done()]
            if not batch:
                return
            self._clock.start()
            started = time.perf_counter()
            work = Work(batch, asyncio.create_task(self._answers(batch), context=batch[0].context))
            for flight in batch:
                flight.work = work
            await asyncio.wait({work.task})
            self.stats.teacher_seconds += self._clock.stop()
        if work.task.cancelled():
            for flight in batch:
                self._drop(flight)
            return
        self._batch_took(time.perf_counter() - started)
        computed: list[tuple[Flight, SparseRows]] = []
        for flight, answer in zip(batch, work.task.result(), strict=True):
            if isinstance(answer, BackendError):
                flight.fail(answer)
                self._forget(flight)
            else:
                computed.append((flight, answer))
                self.stats.rows_computed += len(answer)
                self.stats.timed_rows += len(answer)
                self._rows_from["teacher"].inc(len(answer))
        await self._give(computed)

    async def _answers(self, batch: Sequence[Flight]) -> list[SparseRows | BackendError]:
        """The backend's answers; after a failure that one sequence may have caused, of each alone."""
        try:
            tokens = sum(len(f.token_ids) for f in batch)
            with span("backend score", {"sequences": len(batch), "tokens": tokens}):
                answers = await self._backend.score([f.token_ids for f in batch], max(f.top_k for f in batch))
            if len(answers) != len(batch):
                raise BackendError(f"the backend gave {len(answers)} answers for {len(batch)} sequences")
            return [_checked(flight, rows) for flight, rows in zip(batch, answers, strict=True)]
        except BackendError as error:
            failure = error
        except Exception as error:
            log_exception(logger, "the backend failed in an unknown way", error)
            failure = BackendError(f"{type(error).__name__} in the gateway; its log says more")
        if len(batch) == 1 or failure.kind not in _MAY_BE_ONE:
            return [failure] * len(batch)
        results: list[SparseRows | BackendError] = []
        for flight in batch:
            if flight.abandoned:
                results.append(failure)
                continue
            results += await self._answers([flight])
            last = results[-1]
            if isinstance(last, BackendError) and last.kind not in _MAY_BE_ONE:
                return results + [last] * (len(batch) - len(results))
        return results

    async def _give(self, computed: Sequence[tuple[Flight, SparseRows]]) -> None:
        """Answers, and keeps the rows. Until they are in the cache's hands, later callers find the flight."""

        def pack() -> list[PackedRows]:
            return [PackedRows.of(rows, flight.dtype) for flight, rows in computed]

        for flight, rows in computed:
            if not flight.packed:
                flight.give(ScoredRows(rows, cache_hit=False))
        if self._cache.kind == "none" and not any(flight.packed for flight, _ in computed):
            for flight, _ in computed:
                self._forget(flight)
            return
        for (flight, _), packed in zip(computed, await asyncio.to_thread(pack), strict=True):
            flight.give(ScoredRows(packed, cache_hit=False))
            self._cache.put(flight.key, packed.data)
            self._recent.put(flight.key, packed)
            self._forget(flight)

    def _batch_took(self, seconds: float) -> None:
        before = seconds if self._batch_seconds is None else self._batch_seconds
        self._batch_seconds = before + _LAST_BATCH * (seconds - before)
        self._cache.computing_takes(self._batch_seconds)

    def _drop(self, flight: Flight) -> None:
        flight.answer.cancel()
        self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        # One that asked for more entries may have taken its place.
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _recalled(self, key: bytes, top_k: int) -> PackedRows | None:
        rows = self._recent.get(key)
        if rows is None or rows.top_k < top_k:
            return None
        self._count_hit(rows)
        return rows

    def _count_hit(self, rows: SparseRows | PackedRows) -> None:
        self.stats.hits += 1
        self.stats.rows_from_cache += len(rows)
        self._rows_from["cache"].inc(len(rows))
        self._lookup_ended["hit"].inc()


def _checked(flight: Flight, rows: SparseRows) -> SparseRows | BackendError:
    if len(rows) == len(flight.token_ids) - 1 and rows.top_k >= flight.top_k:
        return rows
    given = f"{len(rows)} rows of {rows.top_k} entries"
    return BackendError(f"the backend gave {given} for {len(flight.token_ids)} tokens and top_k={flight.top_k}")


async def fitted(
    rows: SparseRows | PackedRows, top_k: int, dtype: LogprobDtype, *, packed: bool
) -> SparseRows | PackedRows:
    """The rows with ``top_k`` entries, packed if that is wanted. Packed rows that fit are passed on as they are."""
    if rows.top_k == top_k and (isinstance(rows, PackedRows) or not packed):
        return rows

    def fit() -> SparseRows | PackedRows:
        unpacked = rows.unpacked() if isinstance(rows, PackedRows) else rows
        narrow = unpacked.narrowed(top_k)
        return PackedRows.of(narrow, dtype) if packed else narrow

    return await asyncio.to_thread(fit) if packed or isinstance(rows, PackedRows) else fit()
