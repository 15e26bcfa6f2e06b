"""What a test or a person may make the server do wrong, and what it saw."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Fault:
    """An answer in place of the real one."""

    status: int
    error: Any = "Inference processing failed"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FaultControl:
    """Knobs and counters of one server.

    Attributes:
        key: what the bearer token must be.
        balance: requests that are paid for; then 402.
        requests_per_minute: then 429 with the rate-limit headers.
        shape: logprobs as a list under ``content``, as the one flat token of the published schema, or left out.
        token_bytes: the token's own; those of the lossy string; or none.
        lists_end: whether the token that ended the text is among the logprobs.
        faults: used up, one for each chat completion, before any real answer.
        delay: seconds that a chat completion takes at the least.
        price: USD in and out for a million tokens, as listed; None lists none.
        edit: changes a finished answer.
        clock: monotonic seconds.
    """

    key: str = "sk-local"
    balance: int = 1_000_000
    requests_per_minute: int = 1_000_000
    shape: Literal["content", "flat", "none"] = "content"
    token_bytes: Literal["exact", "lossy", "none"] = "exact"
    lists_end: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    delay: float = 0.0
    price: tuple[float, float] | None = (0.15, 0.6)
    edit: Callable[[dict[str, Any]], None] | None = None
    clock: Callable[[], float] = time.monotonic

    bodies: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    left: int = 0


class RateLimits:
    """The rate limit of a minute, and the block after too many failures."""

    _FAILURES, _SECONDS = 20, 30.0

    def __init__(self, control: FaultControl) -> None:
        self._control = control
        self._window_ends = 0.0
        self._used = 0
        self._failed_at: deque[float] = deque()
        self._blocked_until = float("-inf")

    def refusal(self) -> Fault | None:
        """Counts a request; the answer that it gets if it is one too many."""
        now = self._control.clock()
        if now < self._blocked_until:
            text = (
                "Too many failed attempts (> 20) resulting in a non-success status code. Please wait 30s and try again."
            )
            return Fault(429, text)
        if now >= self._window_ends:
            self._window_ends, self._used = now + 60, 0
        self._used += 1
        return Fault(429, "Rate limit exceeded") if self._used > self._control.requests_per_minute else None

    def ended(self, status: int) -> None:
        now = self._control.clock()
        if status < 400 or now < self._blocked_until:
            return
        self._failed_at.append(now)
        while self._failed_at[0] <= now - self._SECONDS:
            self._failed_at.popleft()
        if len(self._failed_at) > self._FAILURES:
            self._blocked_until = now + self._SECONDS
            self._failed_at.clear()

    @property
    def blocked(self) -> bool:
        return self._control.clock() < self._blocked_until

    def headers(self) -> dict[str, str]:
        limit, left = self._control.requests_per_minute, self._window_ends - self._control.clock()
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(max(0, limit - self._used)),
            "x-ratelimit-reset-requests": str(int(time.time() + left + 1)),
            "x-ratelimit-limit-tokens": "1000000",
            "x-ratelimit-remaining-tokens": "1000000",
            "x-ratelimit-reset-tokens": f"{max(0.0, left):.3f}",
        }
