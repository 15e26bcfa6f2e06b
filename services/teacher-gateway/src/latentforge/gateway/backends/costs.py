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


@dataclass
class Bill:
    """USD that one request is charged; whoever sends it says so as soon as it is known."""

    due: float = 0.0


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
        """Around a request that costs at most ``most`` USD; what its bill says then counts, even if it failed.

        Raises:
            BackendError: the limit may not hold it.
        """
        self._check(most)
        bill = Bill()
        self._open += most
        try:
            yield bill
        finally:
            self._open -= most
            self.spent += bill.due
            self._on_spent(bill.due)

    def _check(self, most: float) -> None:
        if self._limit is None or self.spent + self._open + most <= self._limit:
            return
        text = f"{self._setting}={self._limit:g} USD: {self.spent:.6f} are spent since the gateway started"
        if self.spent + most <= self._limit:
            text = f"{text}, and requests that are under way may take the rest"
            raise BackendError(f"{text}; ask again later", FailureKind.BUSY, retry_after=_RETRY_SECONDS)
        text = f"{text}, and this request may cost {most:.6f}; raise it, or ask for less"
        raise BackendError(text, FailureKind.MISCONFIGURED)
