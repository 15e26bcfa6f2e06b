"""When an API that limits its callers may be asked again: 429, Retry-After and the x-ratelimit headers."""

import email.utils
import time

import httpx


class ApiRateLimits:
    """Knows until when an API will refuse, from what it said last.

    Of x-ratelimit-reset-*, that for requests is a Unix time and that for tokens a number of seconds.
    """

    def __init__(self) -> None:
        # Of time.monotonic.
        self._not_before = 0.0

    @property
    def seconds_left(self) -> float:
        """Until a request may be sent; 0 while one may."""
        return max(0.0, self._not_before - time.monotonic())

    def read(self, response: httpx.Response) -> None:
        """Takes what an answer's headers say. Of a 429 that names no remainder, nothing remains."""
        limited = response.status_code == httpx.codes.TOO_MANY_REQUESTS
        headers = response.headers
        for what, now in (("requests", time.time()), ("tokens", 0.0)):
            remaining = _number(headers.get(f"x-ratelimit-remaining-{what}", "0" if limited else None))
            reset = _number(headers.get(f"x-ratelimit-reset-{what}"))
            if remaining is not None and remaining <= 0 and reset is not None:
                self._wait(reset - now)
        if limited and (seconds := retry_after(headers)) is not None:
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        self._not_before = max(self._not_before, time.monotonic() + seconds)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of Retry-After, which is a number of them or a date."""
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
