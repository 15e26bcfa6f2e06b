"""Scoring one sequence at a time for the callers, in batches for the cache and the backend."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

from latentforge.core.sparse_rows import CorruptRowsError, LogprobDtype, SparseRows, pack, unpack
from latentforge.gateway.backends.base import Backend, TokenIds
from latentforge.gateway.budget import TokenBudget
from latentforge.gateway.cache.base import Cache, CacheError, KeyMaker

_log = logging.getLogger(__name__)

_KEYS_PER_LOOKUP = 32
_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass
class ScoringStats:
    """Counted since the gateway started; ``teacher_seconds`` is the backend's time for ``timed_rows`` rows."""

    hits: int = 0
    misses: int = 0
    rows_from_cache: int = 0
    rows_computed: int = 0
    corrupt_entries: int = 0
    errors: int = 0
    teacher_seconds: float = 0.0
    timed_rows: int = 0

    @property
    def saved_seconds(self) -> float:
        return self.rows_from_cache * self.teacher_seconds / self.timed_rows if self.timed_rows else 0.0


class _BusyClock:
    """Seconds during which at least one of several overlapping pieces of work was going on."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0

    def start(self) -> None:
        if self._running == 0:
            self._since = time.perf_counter()
        self._running += 1

    def stop(self) -> float:
        """Ends one piece; returns the seconds that no earlier call returned."""
        self._running -= 1
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


@dataclass(frozen=True)
class Scored:
    """Rows of one sequence, with as many entries as were asked for."""

    rows: SparseRows
    cache_hit: bool


@dataclass(eq=False)
class _Flight:
    """A sequence on its way through cache and backend, for everybody who waits for it."""

    key: bytes
    token_ids: TokenIds
    top_k: int
    dtype: LogprobDtype
    answer: asyncio.Future[Scored] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waiters: int = 0

    @property
    def abandoned(self) -> bool:
        return self.waiters == 0


class Scorer:
    """Looks rows up, computes what is missing and keeps it. Identical sequences in flight are computed once.

    Flights wait in two queues: for the cache, then, if they are not in it, for the backend. Whatever waits at the same
    time is looked up or computed together, whichever calls it came from. A flight that nobody waits for any more is
    dropped before the backend gets it, and finished once the backend has it.
    """

    def __init__(self, backend: Backend, cache: Cache, *, max_batch_tokens: int, max_tokens_in_flight: int) -> None:
        self._backend = backend
        self._cache = cache
        self._keys = KeyMaker(backend.description)
        self._max_batch_tokens = max_batch_tokens
        self._budget = TokenBudget(max_tokens_in_flight)
        self._flights: dict[bytes, _Flight] = {}
        self._to_look_up: list[_Flight] = []
        self._to_compute: list[_Flight] = []
        self._looking_up = False
        self._dispatching = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = _BusyClock()
        self._warned = -_SECONDS_BETWEEN_WARNINGS
        self.stats = ScoringStats()

    async def score(self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype) -> Scored:
        """Rows for tokens 1 … L−1 of validated ids, uint32 [L].

        Raises:
            BackendError: the teacher failed.
        """
        key = self._keys.key(token_ids, dtype)
        flight = self._flights.get(key)
        if flight is None or flight.top_k < top_k:
            flight = _Flight(key, token_ids, top_k, dtype)
            self._flights[key] = flight
            self._to_look_up.append(flight)
            if not self._looking_up:
                self._looking_up = True
                self._start(self._look_up())
        elif flight.answer.done():
            # Computed for somebody else and still on its way into the store: the teacher does nothing for this one.
            rows = flight.answer.result().rows
            self._count_hit(rows)
            return Scored(rows.narrowed(top_k), cache_hit=True)
        flight.waiters += 1
        try:
            # Shielded: a caller who leaves must not take the answer from the others.
            answer = await asyncio.shield(flight.answer)
        finally:
            flight.waiters -= 1
        return Scored(answer.rows.narrowed(top_k), answer.cache_hit)

    async def warm_up(self, token_ids: TokenIds) -> None:
        """Runs the backend once, so that the first call is not the slow one and the time of a row is known."""
        top_k = min(20, self._backend.description.max_top_k)
        await self._backend.score([token_ids], top_k)
        self._clock.start()
        await self._backend.score([token_ids], top_k)
        self.stats.teacher_seconds += self._clock.stop()
        self.stats.timed_rows += len(token_ids) - 1

    async def close(self) -> None:
        """Waits for what is being computed and written."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self) -> None:
        # Callers of the same moment add theirs first.
        await asyncio.sleep(0)
        while self._to_look_up:
            flights = self._to_look_up[:_KEYS_PER_LOOKUP]
            del self._to_look_up[:_KEYS_PER_LOOKUP]
            for flight, value in zip(flights, await self._stored(flights), strict=True):
                rows = None if value is None else self._read(flight, value)
                if rows is None:
                    self.stats.misses += 1
                    self._to_compute.append(flight)
                else:
                    self._count_hit(rows)
                    flight.answer.set_result(Scored(rows, cache_hit=True))
                    self._forget(flight)
            if self._to_compute and not self._dispatching:
                self._dispatching = True
                self._start(self._dispatch())
        self._looking_up = False

    async def _stored(self, flights: Sequence[_Flight]) -> list[bytes | None]:
        try:
            return await self._cache.get_many([flight.key for flight in flights])
        except CacheError as error:
            self._cache_failed(error)
            return [None] * len(flights)

    def _read(self, flight: _Flight, value: bytes) -> SparseRows | None:
        try:
            rows = unpack(value)
            if len(rows) != len(flight.token_ids) - 1 or rows.first_position != 1:
                raise CorruptRowsError(f"{len(rows)} rows for {len(flight.token_ids)} tokens")
        except CorruptRowsError as error:
            self.stats.corrupt_entries += 1
            _log.warning("a cache entry is dropped and computed again: %s", error)
            return None
        return rows if rows.top_k >= flight.top_k else None

    async def _dispatch(self) -> None:
        """Hands batches to the backend for as long as flights wait and the token budget has room."""
        while self._to_compute:
            batch = self._next_batch()
            if not batch:
                continue
            entered = asyncio.get_running_loop().create_future()
            self._start(self._compute(batch, entered))
            await entered
        self._dispatching = False

    def _next_batch(self) -> list[_Flight]:
        """The flight that waited longest and those nearest to it in length, as many as one forward pass takes."""
        for flight in [f for f in self._to_compute if f.abandoned]:
            self._to_compute.remove(flight)
            self._drop(flight)
        if not self._to_compute:
            return []
        size = len(self._to_compute[0].token_ids)
        batch: list[_Flight] = []
        longest = 0
        for flight in sorted(self._to_compute, key=lambda f: abs(len(f.token_ids) - size)):
            longest = max(longest, len(flight.token_ids))
            if batch and longest * (len(batch) + 1) > self._max_batch_tokens:
                break
            batch.append(flight)
        chosen = set(map(id, batch))
        self._to_compute = [f for f in self._to_compute if id(f) not in chosen]
        return batch

    async def _compute(self, batch: list[_Flight], entered: asyncio.Future[None]) -> None:
        async with self._budget.take(sum(len(f.token_ids) for f in batch)):
            entered.set_result(None)
            for flight in [f for f in batch if f.abandoned]:
                batch.remove(flight)
                self._drop(flight)
            if not batch:
                return
            self._clock.start()
            try:
                answers = await self._backend.score([f.token_ids for f in batch], max(f.top_k for f in batch))
            except Exception as error:
                for flight in batch:
                    flight.answer.set_exception(error)
                    # Callers who are gone leave nobody to retrieve it.
                    flight.answer.exception()
                    self._forget(flight)
                return
            finally:
                self.stats.teacher_seconds += self._clock.stop()
        rows = sum(map(len, answers))
        self.stats.rows_computed += rows
        self.stats.timed_rows += rows
        for flight, answer in zip(batch, answers, strict=True):
            flight.answer.set_result(Scored(answer, cache_hit=False))
        await self._keep(batch, answers)
        for flight in batch:
            # Until it is in the store, later callers find it here.
            self._forget(flight)

    async def _keep(self, batch: Sequence[_Flight], answers: Sequence[SparseRows]) -> None:
        if self._cache.kind == "none":
            return

        def packed() -> dict[bytes, bytes]:
            return {f.key: pack(rows, f.dtype) for f, rows in zip(batch, answers, strict=True)}

        try:
            await self._cache.put_many(await asyncio.to_thread(packed))
        except CacheError as error:
            self._cache_failed(error)

    def _drop(self, flight: _Flight) -> None:
        flight.answer.cancel()
        self._forget(flight)

    def _forget(self, flight: _Flight) -> None:
        # One that asked for more entries may have taken its place.
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _count_hit(self, rows: SparseRows) -> None:
        self.stats.hits += 1
        self.stats.rows_from_cache += len(rows)

    def _cache_failed(self, error: CacheError) -> None:
        self.stats.errors += 1
        if time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
            self._warned = time.monotonic()
            _log.warning("the cache fails and is gone without (%d errors so far): %s", self.stats.errors, error)
