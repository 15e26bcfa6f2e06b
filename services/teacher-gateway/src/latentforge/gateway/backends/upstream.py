"""A teacher's HTTP API: one pool of connections, bounded, patient with limits, and left alone when it fails."""

import asyncio
import email.utils
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson
import tenacity
from pydantic import SecretStr

from latentforge.core.proxies import direct_mounts, proxy_hint
from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import shown_url
from latentforge.gateway.telemetry import span, trace_headers

T = TypeVar("T")

LONGEST_BACKOFF_SECONDS = 32.0
_FIRST_BACKOFF_SECONDS = 0.5
_RETRIED = {429, 500, 502, 503, 504}
_KINDS = {
    401: FailureKind.MISCONFIGURED,
    402: FailureKind.MISCONFIGURED,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.NOT_FOUND,
    429: FailureKind.BUSY,
    504: FailureKind.TOO_SLOW,
}
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Api:
    """Where an API is and how much of it may be used.

    Attributes:
        name: for errors, logs and metrics.
        base_url: what paths are appended to.
        url_setting: the environment variable that gave the URL, for errors.
        key: sent as a bearer token.
        key_setting: the environment variable of the key, for errors.
        max_requests: requests open at one time.
        max_queued: requests that may be queued beside those; more are refused as BUSY.
        attempts: tries of one request.
        timeout: seconds for one try.
        counts_refusals: the API counts every failed request against the key, so the breaker counts them too.
    """

    name: str
    base_url: str
    url_setting: str
    key: SecretStr | None
    key_setting: str
    max_requests: int
    max_queued: int
    attempts: int
    timeout: float
    counts_refusals: bool = False


class _FailedTryError(Exception):
    """One try that failed; ``again`` says whether another may help."""

    def __init__(self, error: BackendError, *, again: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again


class Upstream:
    """Sends requests, tries again what may succeed later, and says in one sentence why the others failed.

    429, 5xx and lost connections are tried again after an exponential backoff with jitter of at most 32 s, or after
    what Retry-After and the x-ratelimit headers ask for; where that is longer than 32 s, the caller is told to come
    back. While the breaker is open nothing is sent. The key and a password in the URL are in no error and no log.

    Args:
        breaker: opened by failed tries of those kinds.
        on_rate_limited, on_success: told about each 429 and each success.
        transport: for tests.

    Raises:
        SettingsError: the URL or the key cannot be used.
    """

    def __init__(
        self,
        api: Api,
        breaker: Breaker,
        metrics: Metrics,
        *,
        on_rate_limited: Callable[[], None] = lambda: None,
        on_success: Callable[[], None] = lambda: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url = parsed_url(api.base_url, api.url_setting)
        check_key(api.key, api.key_setting)
        self._api = api
        # Without what stands before the @: the client's own log lines show whole URLs.
        self._base_url = str(url.copy_with(username=None, password=None)).rstrip("/")
        self._breaker = breaker
        self._metrics = metrics
        self._on_rate_limited, self._on_success = on_rate_limited, on_success
        headers = {} if api.key is None else {"Authorization": f"Bearer {api.key.get_secret_value()}"}
        self._client = httpx.AsyncClient(
            headers=headers,
            auth=(url.username, url.password) if url.userinfo and not headers else None,
            timeout=httpx.Timeout(api.timeout, connect=min(10.0, api.timeout), pool=None),
            limits=httpx.Limits(max_connections=api.max_requests, max_keepalive_connections=api.max_requests),
            transport=transport,
            mounts=direct_mounts(self._base_url),
        )
        self._slots = asyncio.Semaphore(api.max_requests)
        self._queued = 0
        # Seconds of time.monotonic before which the API said that it will refuse.
        self._not_before = 0.0

    async def get(self, path: str) -> Any:
        """The JSON of GET ``path``.

        Raises:
            BackendError: every try failed.
        """
        return await self._request("GET", path, lambda: None, orjson.loads)

    async def post(
        self, path: str, payload: Callable[[], Mapping[str, Any]], read: Callable[[bytes], T] = orjson.loads
    ) -> T:
        """The JSON that answers POST ``path``; ``payload`` is asked for anew at each try.

        Args:
            read: makes what is returned of the answer's bytes, in a thread.

        Raises:
            BackendError: every try failed.
        """
        return await self._request("POST", path, payload, read)

    async def close(self) -> None:
        await self._client.aclose()

    async def _request(
        self, method: str, path: str, payload: Callable[[], Mapping[str, Any] | None], read: Callable[[bytes], T]
    ) -> T:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, _FailedTryError) and e.again),
            wait=_pause,
            stop=tenacity.stop_after_attempt(self._api.attempts),
            reraise=True,
        )
        try:
            async with self._slot():
                body: bytes = await retrying(self._try, method, path, payload)
        except _FailedTryError as failed:
            raise failed.error from None
        # Large answers take tens of milliseconds, which the event loop has better uses for.
        try:
            return await asyncio.to_thread(read, body)
        except orjson.JSONDecodeError:
            raise BackendError(f"{self._where} answers {method} {path} with something else than JSON") from None

    @property
    def _where(self) -> str:
        return f"{self._api.url_setting}={shown_url(self._api.base_url)}"

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots.locked() and self._queued >= self._api.max_queued:
            text = f"{self._api.name} has {self._api.max_requests} requests open and {self._queued} queued"
            raise BackendError(f"{text}; ask again later", FailureKind.BUSY, retry_after=1.0)
        self._queued += 1
        try:
            await self._slots.acquire()
        finally:
            self._queued -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def _try(self, method: str, path: str, payload: Callable[[], Mapping[str, Any] | None]) -> bytes:
        await self._keep_to_limits()
        if not self._breaker.allows():
            left = max(1.0, self._breaker.seconds_left)
            text = f"{self._where} failed too often and is left alone for {left:.0f} s"
            raise _FailedTryError(BackendError(text, FailureKind.GONE, retry_after=left), again=False)
        gauge = self._metrics.upstream_in_flight.labels(self._api.name)
        gauge.inc()
        started = time.perf_counter()
        try:
            about = {"http.request.method": method, "url.path": path}
            with span(f"{self._api.name} {method}", about, kind="client") as note:
                headers = _JSON | trace_headers()
                response = await self._client.request(
                    method, self._base_url + path, content=_content(payload()), headers=headers
                )
                note("http.response.status_code", response.status_code)
        except httpx.TimeoutException:
            raise self._failed(
                "timeout", f"did not answer within {self._api.timeout:g} s", FailureKind.TOO_SLOW
            ) from None
        except httpx.RequestError as error:
            what = f"cannot be reached ({_reason(error)}){proxy_hint(self._base_url)}"
            raise self._failed("connection", what, FailureKind.GONE) from None
        except BaseException:
            self._breaker.abandoned()
            raise
        finally:
            gauge.dec()
            self._metrics.upstream_seconds.labels(self._api.name).observe(time.perf_counter() - started)
        self._read_limits(response.headers, limited=response.status_code == httpx.codes.TOO_MANY_REQUESTS)
        if response.is_success:
            self._breaker.succeeded()
            self._on_success()
            return response.content
        raise self._refused(response)

    def _failed(self, label: str, what: str, kind: FailureKind, retry_after: float | None = None) -> _FailedTryError:
        self._breaker.failed()
        self._metrics.upstream_errors.labels(self._api.name, label).inc()
        again = retry_after is None or retry_after <= LONGEST_BACKOFF_SECONDS
        return _FailedTryError(BackendError(f"{self._where} {what}", kind, retry_after=retry_after), again=again)

    def _refused(self, response: httpx.Response) -> _FailedTryError:
        status = response.status_code
        what = f"answers {status}: {self._without_key(error_text(response.content))}"
        if status in _RETRIED:
            wait = _retry_after(response.headers)
            if status == httpx.codes.TOO_MANY_REQUESTS:
                self._on_rate_limited()
                if wait is not None:
                    self._not_before = max(self._not_before, time.monotonic() + wait)
            return self._failed(str(status), what, _KINDS.get(status, FailureKind.GONE), wait)
        if self._api.counts_refusals:
            self._breaker.failed()
        else:
            self._breaker.abandoned()
        self._metrics.upstream_errors.labels(self._api.name, str(status)).inc()
        kind = _KINDS.get(status, FailureKind.REFUSED if 400 <= status < 500 else FailureKind.BROKEN)
        if kind is FailureKind.MISCONFIGURED:
            what += f"; {'check the credit of' if status == 402 else 'set'} {self._api.key_setting}"
        return _FailedTryError(BackendError(f"{self._where} {what}", kind), again=False)

    def _without_key(self, text: str) -> str:
        """Some servers repeat a key that they refuse."""
        key = self._api.key.get_secret_value() if self._api.key else ""
        return text.replace(key, "***") if key else text

    def _read_limits(self, headers: httpx.Headers, *, limited: bool) -> None:
        """Of x-ratelimit-reset-*, that for requests is a Unix time and that for tokens a number of seconds."""
        for what, now in (("requests", time.time()), ("tokens", 0.0)):
            remaining = _number(headers.get(f"x-ratelimit-remaining-{what}", "0" if limited else None))
            reset = _number(headers.get(f"x-ratelimit-reset-{what}"))
            if remaining is not None and remaining <= 0 and reset is not None:
                self._not_before = max(self._not_before, time.monotonic() + reset - now)

    async def _keep_to_limits(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if left > LONGEST_BACKOFF_SECONDS:
                text = f"{self._where} allows no more requests for {left:.0f} s"
                raise _FailedTryError(BackendError(text, FailureKind.BUSY, retry_after=left), again=False)
            await asyncio.sleep(left)


_JSON = {"Content-Type": "application/json"}


def _content(payload: Mapping[str, Any] | None) -> bytes | None:
    return None if payload is None else orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)


def _pause(state: tenacity.RetryCallState) -> float:
    """What the API asked for, else a random time below a bound that doubles, so that callers do not come in step."""
    assert state.outcome is not None
    failed = state.outcome.exception()
    assert isinstance(failed, _FailedTryError)
    if failed.error.retry_after is not None:
        return min(LONGEST_BACKOFF_SECONDS, failed.error.retry_after)
    bound = min(LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0**state.attempt_number)
    return random.uniform(bound / 2, bound)


def _retry_after(headers: httpx.Headers) -> float | None:
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


def parsed_url(url: str, setting: str) -> httpx.URL:
    """
    Raises:
        SettingsError: it is no URL of an HTTP API.
    """
    # With an @ it may hold a password, which nothing that is wrong with it may show.
    secret = "@" in url
    reason = ""
    try:
        parsed = httpx.URL(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.host) and not shown_url(url).endswith("(hidden)")
    except httpx.InvalidURL as error:
        good, reason = False, "" if secret else f" ({error})"
    if not good:
        shown = shown_url(url) if secret else repr(url)
        raise SettingsError(f"{setting} malformed {shown}{reason}; allowed is http(s)://host[:port][/path]")
    return parsed


def check_key(key: SecretStr | None, setting: str) -> None:
    """
    Raises:
        SettingsError: no header can carry the key.
    """
    if key is not None and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise SettingsError(f"{setting} has characters that no key has; copy it again")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def error_text(body: bytes) -> str:
    """What an error body says: {"error": "text"}, {"error": {"message": …}}, {"message": …} or {"detail": …}."""
    try:
        content: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = body.decode("utf-8", "replace")
    if isinstance(content, dict):
        content = content.get("error", content.get("message", content.get("detail", content)))
    if isinstance(content, dict):
        content = content.get("message", content)
    return str(content)[:_SHOWN_CHARACTERS].strip() or "nothing"
