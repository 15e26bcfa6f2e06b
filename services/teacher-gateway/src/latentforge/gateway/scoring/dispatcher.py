"""From the queue to the backend: batches by turns, few at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from latentforge.gateway.backends.base import Backend, BackendError, TokenIds
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.background import BackgroundTasks
from latentforge.gateway.scoring.batch_call import call_backend
from latentforge.gateway.scoring.callers import Caller
from latentforge.gateway.scoring.fair_queue import FairQueue
from latentforge.gateway.scoring.inflight import BackendCall, InFlightSequence, InFlightTable, QueueFullError
from latentforge.gateway.scoring.stats import BusyClock, ScoringStats
from latentforge.gateway.scoring.token_budget import TokenBudget
from latentforge.teacher_client.sparse_rows import SparseRows

# How much the last batch counts in what a batch is said to take.
_LAST_BATCH = 0.2
_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 1.0, 30.0

Computed = Sequence[tuple[InFlightSequence, SparseRows]]


@dataclass(frozen=True)
class ScoringLimits:
    """How much is done and queued at one time.

    Attributes:
        batch_tokens: of one forward pass, padding included.
        tokens_in_flight: that the backend is given at one time.
        queued_tokens: that are queued for the backend.
        queued_sequences: in flight, lookups included.
    """

    batch_tokens: int
    tokens_in_flight: int
    queued_tokens: int
    queued_sequences: int


class Dispatcher:
    """Has queued sequences computed, in batches by turns of the callers, whichever calls they came from.

    A batch is chosen when the backend can begin it, not before: until then more is queued to choose from, and who asks
    for little waits for no batch but those that have begun. How many those are is the backend's
    (:attr:`TeacherDescription.batches_at_once`), within the token budget.

    Args:
        in_flight: where sequences that fail or that nobody waits for are removed from.
        deliver: given what was computed.
        on_batch: told what a batch takes, in seconds, on average.
    """

    def __init__(
        self,
        backend: Backend,
        limits: ScoringLimits,
        metrics: Metrics,
        stats: ScoringStats,
        in_flight: InFlightTable,
        tasks: BackgroundTasks,
        *,
        deliver: Callable[[Computed], Awaitable[None]],
        on_batch: Callable[[float], None],
    ) -> None:
        self._backend = backend
        self._batch_tokens = limits.batch_tokens
        self._stats = stats
        self._in_flight = in_flight
        self._tasks = tasks
        self._deliver, self._on_batch = deliver, on_batch
        self._budget = TokenBudget(limits.tokens_in_flight)
        batches = min(backend.description.batches_at_once, limits.tokens_in_flight // limits.batch_tokens)
        self._slots = asyncio.Semaphore(max(1, batches))
        self._queue = FairQueue(limits.queued_tokens)
        self._metrics = metrics
        metrics.watch_queue(lambda: len(self._queue), lambda: self._queue.tokens, lambda: self._queue.callers)
        self._dispatching = False
        self._clock = BusyClock()
        self._batch_seconds: float | None = None
        self._rows_computed = metrics.rows.labels("teacher")

    @property
    def queued_tokens(self) -> int:
        return self._queue.tokens

    def add(self, sequence: InFlightSequence) -> None:
        """Queues it, or fails it where the queue is full and nobody has more in it."""
        caller = next(iter(sequence.callers.values()))
        leaving = self._queue.room_for(caller, len(sequence.token_ids))
        full = f"{self._queue.tokens} tokens are queued (MAX_QUEUED_TOKENS)"
        if leaving is None:
            self._in_flight.fail(sequence, self.full(full))
            return
        for other in leaving:
            self._give_way(other, full)
        sequence.queued_at = time.perf_counter()
        self._queue.add(sequence)
        if not self._dispatching:
            self._dispatching = True
            self._tasks.start(self._dispatch())

    def join(self, sequence: InFlightSequence, caller: Caller) -> None:
        """One more question of ``caller`` waits for it."""
        sequence.waiters[caller.name] += 1
        if caller.name not in sequence.callers:
            sequence.callers[caller.name] = caller
            self._queue.join(sequence, caller)

    def leave(self, sequence: InFlightSequence, caller: Caller) -> None:
        """A question of ``caller`` waits for it no more."""
        sequence.waiters[caller.name] -= 1
        if sequence.answer.done():
            return
        if sequence.abandoned:
            self._abandon(sequence)
        elif sequence.waiters[caller.name] == 0:
            self._queue.leave(sequence, caller)
            del sequence.callers[caller.name]

    def make_place(self, caller: Caller, what: str) -> None:
        """Where no more sequences may be in flight: refuses one of somebody who has more queued than ``caller``.

        Raises:
            QueueFullError: nobody has.
        """
        leaving = self._queue.place_for(caller)
        if leaving is None:
            raise self.full(what)
        self._give_way(leaving, what)

    def _abandon(self, sequence: InFlightSequence) -> None:
        """The last who waited for it is gone."""
        if sequence.call is None:
            # Queued still, or looked up, or before the budget: each passes over what has its answer.
            self._queue.remove(sequence)
            self._in_flight.drop(sequence)
        elif sequence.call.stop_if_abandoned():
            # Now, not when the task has ended: until then somebody could join a sequence that nobody computes.
            for other in sequence.call.batch:
                self._in_flight.drop(other)

    def full(self, what: str) -> QueueFullError:
        """The refusal that says when there will be room: when what is queued now has been computed."""
        seconds = self._queue.tokens * self._stats.seconds_per_row
        wait = min(_MOST_RETRY_SECONDS, max(_LEAST_RETRY_SECONDS, seconds))
        return QueueFullError(f"the gateway's queue is full: {what}; ask again later or send less at a time", wait)

    def _give_way(self, sequence: InFlightSequence, what: str) -> None:
        self._queue.remove(sequence)
        self._in_flight.fail(sequence, self.full(what))

    async def warm_up(self, token_ids: TokenIds) -> None:
        """Runs the backend once, so that the first call is not the slow one and the time of a row is known."""
        top_k = min(20, self._backend.description.max_top_k)
        await self._backend.score([token_ids], top_k)
        self._clock.start()
        started = time.perf_counter()
        await self._backend.score([token_ids], top_k)
        self._batch_took(time.perf_counter() - started)
        self._stats.teacher_seconds += self._clock.stop()
        self._stats.timed_rows += len(token_ids) - 1

    async def _dispatch(self) -> None:
        try:
            # Lets what was looked up together be queued together.
            await asyncio.sleep(0)
            while batch := await self._next_batch():
                self._tasks.start(self._compute(batch))
        finally:
            # No await since the queue was seen empty, so whoever adds to it from here on starts another. So he does
            # after an error, which the queue outlives.
            self._dispatching = False

    async def _next_batch(self) -> Sequence[InFlightSequence]:
        """When there is a slot for it, which it keeps; empty, without a slot, if nothing is queued."""
        await self._slots.acquire()
        batch: Sequence[InFlightSequence] = ()
        try:
            batch = self._queue.next_batch(self._batch_tokens)
        finally:
            if not batch:
                self._slots.release()
        return batch

    async def _compute(self, batch: Sequence[InFlightSequence]) -> None:
        """Runs in one of the slots, which it gives back when the backend is done."""
        try:
            async with self._budget.take(sum(len(sequence.token_ids) for sequence in batch)):
                # Without those whose callers left while the budget had no room.
                batch = [sequence for sequence in batch if not sequence.answer.done()]
                if not batch:
                    return
                self._metrics.batch_begins(
                    [len(sequence.token_ids) for sequence in batch],
                    [time.perf_counter() - sequence.queued_at for sequence in batch],
                )
                self._clock.start()
                started = time.perf_counter()
                # In a task of its own, which is cancelled without this one: clock and budget must be given back.
                work = call_backend(self._backend, batch, self._in_flight.drop)
                task = asyncio.create_task(work, context=batch[0].context)
                call = BackendCall(batch, task)
                for sequence in batch:
                    sequence.call = call
                await asyncio.wait({task})
                self._stats.teacher_seconds += self._clock.stop()
        finally:
            self._slots.release()
        if task.cancelled():
            for sequence in batch:
                self._in_flight.drop(sequence)
            return
        self._batch_took(time.perf_counter() - started)
        computed: list[tuple[InFlightSequence, SparseRows]] = []
        for sequence, answer in zip(batch, task.result(), strict=True):
            if isinstance(answer, BackendError):
                self._in_flight.fail(sequence, answer)
            else:
                computed.append((sequence, answer))
                self._stats.rows_computed += len(answer)
                self._stats.timed_rows += len(answer)
                self._rows_computed.inc(len(answer))
        await self._deliver(computed)

    def _batch_took(self, seconds: float) -> None:
        # A moving average: m ← m + 0.2 (s − m).
        before = seconds if self._batch_seconds is None else self._batch_seconds
        self._batch_seconds = before + _LAST_BATCH * (seconds - before)
        self._on_batch(self._batch_seconds)
