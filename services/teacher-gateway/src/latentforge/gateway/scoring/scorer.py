"""Scoring one sequence at a time for the callers, in batches for the cache and the backend."""

import asyncio
import logging
import time
from collections import deque

from latentforge.core.tracing import span
from latentforge.gateway.backends.base import Backend, CandidateIds, TokenIds
from latentforge.gateway.cache.base import KeyMaker
from latentforge.gateway.cache.guarded import GuardedCache
from latentforge.gateway.cache.memory import RecentRows
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.background import BackgroundTasks
from latentforge.gateway.scoring.callers import current_caller
from latentforge.gateway.scoring.dispatcher import Computed, Dispatcher, ScoringLimits
from latentforge.gateway.scoring.fitting import fitted
from latentforge.gateway.scoring.inflight import InFlightSequence, InFlightTable, ScoredRows
from latentforge.gateway.scoring.stats import ScoringStats
from latentforge.teacher_client.sparse_rows import CorruptRowsError, LogprobDtype, PackedRows, SparseRows

logger = logging.getLogger(__name__)

_KEYS_PER_LOOKUP = 16
_PARALLEL_LOOKUPS = 4
_SECONDS_BETWEEN_WARNINGS = 60.0
_FLUSH_SECONDS = 5.0


class Scorer:
    """Looks rows up, computes what is missing and keeps it. Identical sequences in flight are computed once.

    Sequences are queued twice: for the cache, then, if they are not in it, for the backend. Whatever is queued at the
    same time is looked up or computed together, whichever calls it came from. A sequence that nobody waits for any more
    is dropped; a call of the backend is cancelled when nobody waits for any of its sequences.

    There are no locks: only the event loop's thread comes here, and between two awaits nobody else does.
    """

    def __init__(
        self, backend: Backend, cache: GuardedCache, metrics: Metrics, limits: ScoringLimits, *, recent_bytes: int = 0
    ) -> None:
        self._cache = cache
        self._max_sequences = limits.queued_sequences
        self._keys = KeyMaker(backend.description)
        self._recent = RecentRows(recent_bytes if cache.kind != "none" else 0)
        self._in_flight = InFlightTable()
        self._to_look_up: deque[InFlightSequence] = deque()
        self._lookups = 0
        self._warned = -_SECONDS_BETWEEN_WARNINGS
        self._rows_from_cache = metrics.rows.labels("cache")
        self._lookup_ended = {result: metrics.lookups.labels(result) for result in ("hit", "miss", "corrupt", "error")}
        self.stats = ScoringStats()
        self._tasks = BackgroundTasks()
        self._dispatcher = Dispatcher(
            backend,
            limits,
            metrics,
            self.stats,
            self._in_flight,
            self._tasks,
            deliver=self._deliver,
            on_batch=cache.computing_takes,
        )

    @property
    def queued_tokens(self) -> int:
        """Tokens that are queued for the backend."""
        return self._dispatcher.queued_tokens

    def recall(self, token_ids: TokenIds, top_k: int, dtype: LogprobDtype) -> PackedRows | None:
        """Rows that this gateway gave lately, ``top_k`` of them or more; counted as a hit."""
        return self._recalled(self._keys.key(token_ids, dtype), top_k)

    async def score(
        self,
        token_ids: TokenIds,
        top_k: int,
        dtype: LogprobDtype,
        *,
        packed: bool = False,
        candidates: CandidateIds | None = None,
    ) -> ScoredRows:
        """Rows for tokens 1 … L−1 of validated ids, uint32 [L], with exactly ``top_k`` entries.

        Args:
            packed: PackedRows are wanted; else they are given where they are what the store has.
            candidates: uint32 [L − 1, m], to be told about besides. Such an answer is always computed: the store has
                rows alone, and entries for every choice of candidates would hardly be asked for again.

        Raises:
            BackendError: the teacher failed, or (QueueFullError) too much is queued already.
        """
        key = self._keys.key(token_ids, dtype, candidates)
        if candidates is None and (recent := self._recalled(key, top_k)) is not None:
            return ScoredRows(await fitted(recent, top_k, dtype, packed=packed), cache_hit=True)
        sequence = self._in_flight.get(key)
        if sequence is None or sequence.top_k < top_k:
            sequence = self._begin(InFlightSequence(key, token_ids, top_k, dtype, candidates))
        elif sequence.answer.done():
            # Computed for somebody else and still on its way into the store: the teacher does nothing for this one.
            done = sequence.answer.result()
            self._count_hit(done.rows)
            rows = await fitted(done.rows, top_k, dtype, packed=packed)
            return ScoredRows(rows, True, done.candidate_logprobs)
        caller = current_caller()
        self._dispatcher.join(sequence, caller)
        sequence.packed |= packed
        try:
            # Without the shield, cancelling one caller would cancel the future that the others wait for. The work under
            # it ends when the last of them has left.
            answer = await asyncio.shield(sequence.answer)
        finally:
            self._dispatcher.leave(sequence, caller)
        rows = await fitted(answer.rows, top_k, dtype, packed=packed)
        # Of those who stayed, the first to be here counts it.
        joined, sequence.counted = sequence.counted, True
        return ScoredRows(rows, answer.cache_hit, answer.candidate_logprobs, joined)

    async def warm_up(self, token_ids: TokenIds) -> None:
        """Runs the backend once, so that the first call is not the slow one and the time of a row is known."""
        await self._dispatcher.warm_up(token_ids)

    async def close(self) -> None:
        """Waits for what is being computed and written."""
        await self._tasks.finish()
        await self._cache.flush(_FLUSH_SECONDS)

    def _begin(self, sequence: InFlightSequence) -> InFlightSequence:
        if len(self._in_flight) >= self._max_sequences:
            what = f"{len(self._in_flight)} sequences are in flight (MAX_QUEUED_SEQUENCES)"
            self._dispatcher.make_place(current_caller(), what)
        self._in_flight.add(sequence)
        if sequence.candidates is not None:
            self._dispatcher.add(sequence)
            return sequence
        self._to_look_up.append(sequence)
        if self._lookups < _PARALLEL_LOOKUPS:
            self._lookups += 1
            self._tasks.start(self._look_up())
        return sequence

    async def _look_up(self) -> None:
        # Lets all who ask in this turn of the event loop add theirs, so that they are one lookup.
        await asyncio.sleep(0)
        while self._to_look_up:
            sequences: list[InFlightSequence] = []
            while self._to_look_up and len(sequences) < _KEYS_PER_LOOKUP:
                sequence = self._to_look_up.popleft()
                # Without those whose callers have left.
                if not sequence.answer.done():
                    sequences.append(sequence)
            if not sequences:
                continue
            with span("cache lookup", {"sequences": len(sequences)}, within=sequences[0].context):
                values = await self._cache.get_many([sequence.key for sequence in sequences])
            for sequence, value in zip(sequences, values or [None] * len(sequences), strict=True):
                rows = None if value is None else self._read(sequence, value)
                if rows is not None:
                    self._count_hit(rows)
                    self._recent.put(sequence.key, rows)
                    sequence.give(ScoredRows(rows, cache_hit=True))
                    self._in_flight.remove(sequence)
                    continue
                if value is None:
                    self._lookup_ended["error" if values is None else "miss"].inc()
                self.stats.misses += 1
                if not sequence.answer.done():
                    self._dispatcher.add(sequence)
        # No await since the queue was seen empty, so whoever adds to it from here on starts another.
        self._lookups -= 1

    def _read(self, sequence: InFlightSequence, value: bytes) -> PackedRows | None:
        """A cache's entry, or None if it is corrupt or has fewer entries a row than are asked for."""
        try:
            rows = PackedRows.read(value)
            if len(rows) != len(sequence.token_ids) - 1 or rows.first_position != 1 or rows.dtype != sequence.dtype:
                what = f"{len(rows)} {rows.dtype} rows from {rows.first_position}"
                raise CorruptRowsError(f"{what} for {len(sequence.token_ids)} tokens and {sequence.dtype}")
        except CorruptRowsError as error:
            self.stats.corrupt_entries += 1
            self._lookup_ended["corrupt"].inc()
            if time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
                self._warned = time.monotonic()
                logger.warning(
                    "a cache entry is dropped and computed again (%d so far): %s", self.stats.corrupt_entries, error
                )
            return None
        if rows.top_k < sequence.top_k:
            self._lookup_ended["miss"].inc()
            return None
        return rows

    async def _deliver(self, computed: Computed) -> None:
        """Answers, and keeps the rows.

        Callers who want arrays have them before anything is packed; packing, which the cache needs anyway, is done once
        for all others. Each sequence stays in flight until its rows are in the cache's hands.
        """

        def pack() -> list[PackedRows]:
            return [PackedRows.of(rows, sequence.dtype) for sequence, rows in computed]

        for sequence, rows in computed:
            if sequence.candidates is not None:
                sequence.give(ScoredRows(rows, False, sequence.candidate_logprobs))
                self._in_flight.remove(sequence)
            elif not sequence.packed:
                sequence.give(ScoredRows(rows, cache_hit=False))
        computed = [(sequence, rows) for sequence, rows in computed if sequence.candidates is None]
        if self._cache.kind == "none" and not any(sequence.packed for sequence, _ in computed):
            for sequence, _ in computed:
                self._in_flight.remove(sequence)
            return
        for (sequence, _), packed in zip(computed, await asyncio.to_thread(pack), strict=True):
            sequence.give(ScoredRows(packed, cache_hit=False))
            self._cache.put(sequence.key, packed.data)
            self._recent.put(sequence.key, packed)
            self._in_flight.remove(sequence)

    def _recalled(self, key: bytes, top_k: int) -> PackedRows | None:
        rows = self._recent.get(key)
        if rows is None or rows.top_k < top_k:
            return None
        self._cache.used(key)
        self._count_hit(rows)
        return rows

    def _count_hit(self, rows: SparseRows | PackedRows) -> None:
        self.stats.hits += 1
        self.stats.rows_from_cache += len(rows)
        self._rows_from_cache.inc(len(rows))
        self._lookup_ended["hit"].inc()
