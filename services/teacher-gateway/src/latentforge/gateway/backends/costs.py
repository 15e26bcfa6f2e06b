"""What an API's answers cost, and the most that they may."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from latentforge.gateway.backends.base import BackendError, FailureKind

_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Price:
    """List price in USD for a million tokens. What an API takes off for prompts that it remembers is not counted."""

    input_usd: float
    output_usd: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD."""
        return (self.input_usd * prompt_tokens + self.output_usd * completion_tokens) / 1e6


class Bill:
    """What one request may have cost. A try that was sent counts with the most that it can cost until more is known.

    Args:
        most: USD that one try can cost.
        hold: keeps that much of the limit free, or raises.
    """

    def __init__(self, most: float, hold: Callable[[float], None]) -> None:
        self._most, self._hold = most, hold
        self.held = self.due = 0.0

    def trying(self) -> None:
        """Before each try; those before it may have cost something that nobody was told.

        Raises:
            BackendError: the limit may not hold it.
        """
        if self.held < self.due + self._most:
            self._hold(self._most)
            self.held += self._most

    def sent(self) -> None:
        """A try is on its way; its answer may never come, and is charged all the same."""
        self.due += self._most

    def refused(self) -> None:
        """The try was answered with an error, which costs nothing."""
        self.due -= self._most

    def answered(self, usd: float) -> None:
        """The last try costs this."""
        self.due += usd - self._most


class Costs:
    """Sums what answers cost since the gateway started, and lets no request go that could take the sum over a limit.

    Args:
        limit: USD; None has none.
        setting: the environment variable that gave it, for errors.
        on_spent: told each amount.
    """

    def __init__(self, limit: float | None, setting: str, on_spent: Callable[[float], None] = lambda usd: None) -> None:
        self._limit = limit
        self._setting = setting
        self._on_spent = on_spent
        self._open = 0.0
        self.spent = 0.0

    @contextmanager
    def request(self, most: float) -> Iterator[Bill]:
        """Around a request whose tries cost at most ``most`` USD each; what its bill says counts, even if it failed.

        Raises:
            BackendError: the limit may not hold it.
        """
        bill = Bill(most, self._hold)
        bill.trying()
        try:
            yield bill
        finally:
            self._open -= bill.held
            self.spent += bill.due
            self._on_spent(bill.due)

    def _hold(self, most: float) -> None:
        self._check(most)
        self._open += most

    def _check(self, most: float) -> None:
        if self._limit is None or self.spent + self._open + most <= self._limit:
            return
        text = f"{self._setting}={self._limit:g} USD: {self.spent:.6f} are spent since the gateway started"
        if self.spent + most <= self._limit:
            text = f"{text}, and requests that are under way may take the rest"
            raise BackendError(f"{text}; ask again later", FailureKind.BUSY, retry_after=_RETRY_SECONDS)
        text = f"{text}, and this request may cost {most:.6f}; raise it, or ask for less"
        raise BackendError(text, FailureKind.MISCONFIGURED)
