"""How many tokens a caller may have computed in a minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from latentforge.gateway.backends.base import BackendError, FailureKind

_MINUTE = 60.0


class QuotaError(BackendError):
    """The caller's tokens of this minute are used up."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, FailureKind.BUSY, retry_after=retry_after)


@dataclass
class Charge:
    """What one call uses: ``used`` counts the tokens that the teacher computed for it."""

    used: int = 0


class TokenQuota:
    """A token bucket that a call may overdraw: it holds a minute's tokens at most and fills at that rate.

    A call is let in while anything is left. All that it may use is taken at once, so that many calls at a time do not
    each see the same rest; what it did not use (cached rows, failures) is given back at its end. Since one call may
    leave the bucket in debt, a batch larger than a minute's tokens is possible and is paid for afterwards: over hours
    nobody exceeds the rate.

    Args:
        tokens_per_minute: of texts, prompts and continuations that the teacher computes.
        clock: seconds, monotonic; tests give their own.
    """

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._left = float(tokens_per_minute)
        self._at = clock()

    @contextmanager
    def charged(self, tokens: int) -> Iterator[Charge]:
        """Around a call that may use ``tokens``.

        Raises:
            QuotaError: nothing is left; it says when something will be.
        """
        self._fill()
        if self._left <= 0:
            seconds = _MINUTE * (1 - self._left) / self.tokens_per_minute
            raise QuotaError(
                f"the quota of {self.tokens_per_minute:,} tokens a minute is used up; ask again in {seconds:.1f} s",
                seconds,
            )
        self._left -= tokens
        charge = Charge()
        try:
            yield charge
        finally:
            self._fill()
            self._left = min(float(self.tokens_per_minute), self._left + tokens - charge.used)

    def _fill(self) -> None:
        now = self._clock()
        filled = self._left + (now - self._at) * self.tokens_per_minute / _MINUTE
        self._left, self._at = min(float(self.tokens_per_minute), filled), now
