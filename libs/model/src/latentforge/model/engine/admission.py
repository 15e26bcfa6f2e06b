"""Who gets in, and who is next: the part of an engine that any thread may call."""

import math
import threading
from collections.abc import Callable, Hashable
from weakref import WeakSet

from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.engine.errors import EngineFullError, GenerationCancelledError
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.queue import RequestQueue
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from latentforge.model.engine.ticket import Listener, Ticket

# All texts that are scored wait in one lane; those that are written in that of their decoding.
SCORING = "scoring"
# Slots that are taken past the engine come free without a word.
_RETRY_SECONDS = 0.05


class Admission:
    """The queue behind a lock, and what the loop must be woken for."""

    def __init__(self, limits: EngineLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        self._queue = RequestQueue(limits)
        self._cancelled: list[Ticket] = []
        self._known: WeakSet[BatchDecoding] = WeakSet()
        # Somebody came after the loop last asked who waits.
        self._has_new = False
        self._is_closed = False
        # Guesses when there is room again.
        self._mean_seconds = 1.0

    @property
    def queued(self) -> int:
        with self._changed:
            return len(self._queue)

    @property
    def slots_used(self) -> int:
        with self._changed:
            return self._queue.num_running - self._queue.running_in(SCORING)

    @property
    def slots_total(self) -> int:
        with self._changed:
            return sum(decoding.num_slots for decoding in self._known)

    @property
    def running(self) -> int:
        with self._changed:
            return self._queue.num_running

    @property
    def is_idle(self) -> bool:
        with self._changed:
            return not (len(self._queue) or self._queue.num_running)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def check_room(self, decoding: BatchDecoding, num_others: int = 0) -> None:
        """As :meth:`latentforge.model.engine.engine.Engine.check_room`."""
        with self._changed:
            self._check_room(decoding, decoding.num_slots, 1, num_others)

    def submit(
        self, request: GenerationRequest | ScoringRequest, listener: Listener, seconds: float | None = None
    ) -> Ticket:
        """As :meth:`latentforge.model.engine.engine.Engine.submit`."""
        if isinstance(request, GenerationRequest):
            if request.max_tokens < 1:
                raise ValueError(f"max_tokens={request.max_tokens}; ask for at least 1")
        elif not len(request.token_ids):
            raise ValueError("there are no token_ids to score; give at least one")
        limit = self.limits.request_seconds if seconds is None else seconds
        ticket = Ticket(request, listener, self._clock(), limit, self.cancel)
        lane, num_slots = self._lane_of(request)
        with self._changed:
            self._check_room(lane, num_slots, ticket.num_tokens)
            self._known.add(request.decoding)
            self._queue.push(ticket, lane, num_slots)
            self._has_new = True
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Has the loop end a ticket, wherever it is by then."""
        with self._changed:
            self._cancelled.append(ticket)
            self._changed.notify_all()

    def close(self) -> None:
        """Lets nobody in any more, and has the loop end what there is."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> None:
        """Sleeps until the loop has something to do, or for ``timeout`` seconds."""
        with self._changed:
            if self._cancelled or self._is_closed or self._has_new:
                return
            if len(self._queue):
                timeout = _RETRY_SECONDS if timeout is None else min(timeout, _RETRY_SECONDS)
            self._changed.wait(timeout)

    # From here on: for the loop.

    def lanes(self) -> list[Hashable]:
        """Where somebody waits."""
        with self._changed:
            self._has_new = False
            return self._queue.lanes

    def take(self, lane: Hashable) -> Ticket | None:
        """A lane's next ticket, which runs from now on; None where none waits or no slot is free."""
        with self._changed:
            return self._queue.take(lane)

    def take_cancelled(self) -> list[Ticket]:
        """Tickets that are to end."""
        with self._changed:
            tickets, self._cancelled = self._cancelled, []
        return tickets

    def take_late(self, now: float) -> list[Ticket]:
        """Waiting tickets whose time is over; they wait no more."""
        with self._changed:
            return self._queue.remove_late(now)

    def take_all(self) -> list[Ticket]:
        """All that wait; they wait no more."""
        with self._changed:
            self._cancelled.clear()
            return self._queue.clear()

    def remove(self, ticket: Ticket) -> bool:
        """Takes a waiting ticket out; says whether it waited."""
        with self._changed:
            return self._queue.remove(ticket, self._lane_of(ticket.request)[0])

    def release(self, ticket: Ticket) -> None:
        """Frees the place of a ticket that ran."""
        with self._changed:
            self._queue.release(self._lane_of(ticket.request)[0])

    def note_seconds(self, seconds: float) -> None:
        """Tells how long a ticket ran."""
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def _lane_of(self, request: GenerationRequest | ScoringRequest) -> tuple[Hashable, int]:
        if isinstance(request, ScoringRequest):
            return SCORING, self.limits.scoring_slots
        return request.decoding, request.decoding.num_slots

    def _check_room(self, lane: Hashable, num_slots: int, num_tokens: int, num_others: int = 0) -> None:
        if self._is_closed:
            raise GenerationCancelledError("the engine is shutting down and takes no more requests")
        limit = self._queue.full_limit(lane, num_slots, num_tokens, num_others)
        if limit is not None:
            retry_after = max(1, math.ceil(self._mean_seconds * self._queue.rounds(lane, num_slots)))
            message = f"{len(self._queue) + num_others} requests are queued, as many as {limit} allows"
            raise EngineFullError(limit, message, retry_after)
