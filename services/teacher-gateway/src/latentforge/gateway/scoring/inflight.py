"""Sequences on their way through the cache and the backend, and the bounded queue between the two."""

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from latentforge.gateway.backends.base import BackendError, FailureKind, TokenIds
from latentforge.teacher_client.sparse_rows import LogprobDtype, PackedRows, SparseRows

# Of those that wait longest: among these the ones of like length are looked for.
_CHOSEN_FROM = 512


@dataclass(frozen=True)
class ScoredRows:
    """Rows of one sequence."""

    rows: SparseRows | PackedRows
    cache_hit: bool


class QueueFullError(BackendError):
    """The gateway has as much to do as it may; later it works."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, FailureKind.BUSY, retry_after=retry_after)


@dataclass(eq=False)
class Flight:
    """A sequence on its way through cache and backend, for everybody who waits for it."""

    key: bytes
    token_ids: TokenIds
    top_k: int
    dtype: LogprobDtype
    answer: asyncio.Future[ScoredRows] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waiters: int = 0
    # Where the first who asked is answered: what is done for the flight is told in that call's log and trace.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    # Somebody wants the rows packed.
    packed: bool = False
    # The backend's work on it, once that has begun.
    work: "Work | None" = None

    @property
    def abandoned(self) -> bool:
        return self.waiters == 0

    def give(self, scored: ScoredRows) -> None:
        """Unless it was answered or dropped before."""
        if not self.answer.done():
            self.answer.set_result(scored)

    def fail(self, error: BackendError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            # Callers who are gone leave nobody to retrieve it.
            self.answer.exception()


@dataclass(eq=False)
class Work:
    """One call of the backend."""

    flights: Sequence[Flight]
    task: asyncio.Task[Any]

    def stop_if_abandoned(self) -> bool:
        """Cancels the call when nobody waits for any of its sequences; says whether it did."""
        if self.task.done() or not all(flight.abandoned for flight in self.flights):
            return False
        self.task.cancel()
        return True


class WaitingRoom:
    """Flights that wait for the backend, at most ``max_tokens`` of tokens; one alone may be longer."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._flights: dict[Flight, None] = {}
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._flights)

    def has_room_for(self, flight: Flight) -> bool:
        return not self._flights or self.tokens + len(flight.token_ids) <= self._max_tokens

    def add(self, flight: Flight) -> None:
        self._flights[flight] = None
        self.tokens += len(flight.token_ids)

    def remove(self, flight: Flight) -> None:
        if flight in self._flights:
            del self._flights[flight]
            self.tokens -= len(flight.token_ids)

    def next_batch(self, max_batch_tokens: int) -> list[Flight]:
        """Takes the flight that waited longest and those nearest to it in length, as many as one forward pass takes."""
        first = next(iter(self._flights), None)
        if first is None:
            return []
        size = len(first.token_ids)
        batch: list[Flight] = []
        longest = 0
        candidates = islice(self._flights, _CHOSEN_FROM)
        for flight in sorted(candidates, key=lambda f: abs(len(f.token_ids) - size)):
            longest = max(longest, len(flight.token_ids))
            if batch and longest * (len(batch) + 1) > max_batch_tokens:
                break
            batch.append(flight)
        for flight in batch:
            self.remove(flight)
        return batch
