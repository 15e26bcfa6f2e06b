"""Leaves a failing dependency alone for a while."""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Self


class Breaker:
    """A circuit breaker: opens after ``failures`` failures within ``window`` seconds, for ``pause`` seconds.

    Successes in between do not make up for failures: providers that block count those alone.
    After the pause one caller at a time may try (half-open): success closes the breaker, failure opens it again.
    Ask :meth:`allows` before each try and report its end to :meth:`succeeded`, :meth:`failed` or :meth:`abandoned`.

    Args:
        of_last: only failures among that many last tries count; unset looks back by ``window`` alone.
        on_change: called with True when it opens and with False when it closes.
        clock: seconds, monotonic; tests give their own.
    """

    def __init__(
        self,
        failures: int,
        window: float,
        pause: float,
        *,
        of_last: int | None = None,
        on_change: Callable[[bool], None] = lambda is_open: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._window, self._pause = failures, window, pause
        self._on_change, self._clock = on_change, clock
        self._of_last = of_last
        # When a try failed; None for one that succeeded, kept only where ``of_last`` counts it.
        self._tries: deque[float | None] = deque(maxlen=of_last)
        self._opened_at: float | None = None
        self._probing = False

    @classmethod
    def never_opening(cls) -> Self:
        """For tries that look whether something works: their failures are what is looked for, and no reason to stop."""
        return cls(sys.maxsize, 1.0, 1.0)

    @property
    def is_open(self) -> bool:
        """Open or half-open: it has not been seen to work again."""
        return self._opened_at is not None

    @property
    def seconds_left(self) -> float:
        """Until a try may be made; 0 while one may."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._pause - self._clock())

    def allows(self) -> bool:
        """Whether to try now. While half-open only one try is let through at a time."""
        if self._opened_at is None:
            return True
        if self._probing or self.seconds_left > 0:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """While it is open only the try that was let through says that all is well; others began before it opened."""
        if self._opened_at is None:
            if self._of_last is not None:
                self._tries.append(None)
        elif self._probing:
            self._tries.clear()
            self._opened_at = None
            self._on_change(False)
        self._probing = False

    def failed(self) -> None:
        now = self._clock()
        self._tries.append(now)
        # Old successes (None) are kept: deque's own length forgets them, where they count at all.
        while self._tries[0] is not None and self._tries[0] <= now - self._window:
            self._tries.popleft()
        failures = sum(at is not None and at > now - self._window for at in self._tries)
        if self._probing or (self._opened_at is None and failures >= self._limit):
            was_open = self._opened_at is not None
            self._opened_at = now
            self._probing = False
            if not was_open:
                self._on_change(True)

    def abandoned(self) -> None:
        """The try was cancelled and says nothing."""
        self._probing = False
