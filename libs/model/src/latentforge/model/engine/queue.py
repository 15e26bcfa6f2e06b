"""The requests that wait for a slot: first come, first served in each lane."""

from collections import Counter, deque
from collections.abc import Hashable, Iterator

from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.ticket import Ticket


class RequestQueue:
    """Waiting tickets by lane, and how many of a lane run; a lane is what has slots of its own.

    So a request of a full lane holds up none of another that came later. A lane that nobody waits or runs in is
    forgotten, with all references to it. For callers that hold one lock.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._waiting: dict[Hashable, deque[Ticket]] = {}
        self._num_slots: dict[Hashable, int] = {}
        self._running: Counter[Hashable] = Counter()
        self._num_tokens = 0
        self._earliest_deadline = float("inf")

    def __len__(self) -> int:
        return sum(len(tickets) for tickets in self._waiting.values())

    def __iter__(self) -> Iterator[Ticket]:
        for tickets in self._waiting.values():
            yield from tickets

    @property
    def lanes(self) -> list[Hashable]:
        """Lanes that somebody waits in."""
        return list(self._waiting)

    @property
    def num_running(self) -> int:
        """Tickets that were taken and not released."""
        return sum(self._running.values())

    def running_in(self, lane: Hashable) -> int:
        return self._running[lane]

    def full_limit(self, lane: Hashable, num_slots: int, num_tokens: int, num_others: int = 0) -> str | None:
        """The bound that keeps out one more request of ``num_tokens``; None where it may come.

        Args:
            lane: where it would wait.
            num_slots: texts that may run there at once.
            num_tokens: what it may come to.
            num_others: requests that are about to come as well.
        """
        free, ahead = num_slots - self._running[lane], len(self._waiting.get(lane, ())) + num_others
        if ahead < free:
            return None
        elsewhere = sum(self._excess(other) for other in self._waiting if other != lane)
        if elsewhere + ahead - free >= self._limits.queue_limit:
            return "queue_limit"
        if self._num_tokens and self._num_tokens + num_tokens > self._limits.queue_tokens:
            return "queue_tokens"
        return None

    def rounds(self, lane: Hashable, num_slots: int) -> int:
        """How often all slots of a lane must come free until a request that comes now has one."""
        return 1 + len(self._waiting.get(lane, ())) // num_slots

    def push(self, ticket: Ticket, lane: Hashable, num_slots: int) -> None:
        self._num_slots[lane] = num_slots
        self._waiting.setdefault(lane, deque()).append(ticket)
        self._num_tokens += ticket.num_tokens
        self._earliest_deadline = min(self._earliest_deadline, ticket.deadline)

    def take(self, lane: Hashable) -> Ticket | None:
        """The lane's next ticket, which runs from now on; None where none waits or no slot is free."""
        if not self._waiting.get(lane) or not self._num_free(lane):
            return None
        ticket = self._waiting[lane].popleft()
        self._running[lane] += 1
        self._left(ticket, lane)
        return ticket

    def release(self, lane: Hashable) -> None:
        """A ticket of the lane runs no more."""
        self._running[lane] -= 1
        self._forget_if_unused(lane)

    def remove(self, ticket: Ticket, lane: Hashable) -> bool:
        """Takes a waiting ticket out; says whether it waited."""
        tickets = self._waiting.get(lane)
        if tickets is None or ticket not in tickets:
            return False
        tickets.remove(ticket)
        self._left(ticket, lane)
        return True

    def remove_late(self, now: float) -> list[Ticket]:
        """Takes out those whose time is over."""
        if now <= self._earliest_deadline:
            return []
        late = []
        for lane in self.lanes:
            for ticket in [ticket for ticket in self._waiting[lane] if ticket.deadline < now]:
                self.remove(ticket, lane)
                late.append(ticket)
        self._earliest_deadline = min((ticket.deadline for ticket in self), default=float("inf"))
        return late

    def clear(self) -> list[Ticket]:
        """Takes out all that wait."""
        tickets = list(self)
        for lane in self.lanes:
            del self._waiting[lane]
            self._forget_if_unused(lane)
        self._num_tokens = 0
        self._earliest_deadline = float("inf")
        return tickets

    def _excess(self, lane: Hashable) -> int:
        return max(0, len(self._waiting[lane]) - self._num_free(lane))

    def _num_free(self, lane: Hashable) -> int:
        return self._num_slots[lane] - self._running[lane]

    def _left(self, ticket: Ticket, lane: Hashable) -> None:
        self._num_tokens -= ticket.num_tokens
        if not self._waiting[lane]:
            del self._waiting[lane]
            self._forget_if_unused(lane)

    def _forget_if_unused(self, lane: Hashable) -> None:
        if lane not in self._waiting and not self._running[lane]:
            del self._running[lane]
            self._num_slots.pop(lane, None)
