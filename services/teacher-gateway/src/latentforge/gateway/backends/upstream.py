"""A teacher's HTTP API: one pool of connections, bounded, patient with limits, and left alone when it fails."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson
import tenacity
from pydantic import SecretStr

from latentforge.core.proxies import proxy_hint
from latentforge.core.tracing import span, trace_headers
from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.costs import Bill
from latentforge.gateway.backends.http_api import error_text, open_client, without_key
from latentforge.gateway.backends.rate_limits import ApiRateLimits, retry_after
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import shown_url

T = TypeVar("T")

LONGEST_BACKOFF_SECONDS = 32.0
_FIRST_BACKOFF_SECONDS = 0.5
# What httpx's connection pool calls them.
_CONNECTED = "connection.connect_tcp.complete"
_SENDING = "send_request_headers.started"
_RETRIED = {429, 500, 502, 503, 504}
_KINDS = {
    401: FailureKind.MISCONFIGURED,
    402: FailureKind.MISCONFIGURED,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.NOT_FOUND,
    429: FailureKind.BUSY,
    504: FailureKind.TOO_SLOW,
}


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
        blames_request: says of a 500's body whether it is about what was asked, so that to ask again or to leave the
            API alone helps nobody.
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
    blames_request: Callable[[bytes], bool] = lambda body: False


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
        on_doubt: told about each connection that is opened and each try that failed: from here on another server may
            answer.
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
        on_doubt: Callable[[], None] = lambda: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._api = api
        self._breaker = breaker
        self._metrics = metrics
        self._on_rate_limited, self._on_success, self._on_doubt = on_rate_limited, on_success, on_doubt
        self._base_url, self._client = open_client(
            api.base_url,
            api.url_setting,
            api.key,
            api.key_setting,
            timeout=httpx.Timeout(api.timeout, connect=min(10.0, api.timeout), pool=None),
            limits=httpx.Limits(max_connections=api.max_requests, max_keepalive_connections=api.max_requests),
            transport=transport,
        )
        self._slots = asyncio.Semaphore(api.max_requests)
        self._queued = 0
        self._limits = ApiRateLimits()

    async def get(self, path: str, read: Callable[[bytes], Any] = orjson.loads) -> Any:
        """The JSON of GET ``path``, or what ``read`` makes of the answer's bytes.

        Raises:
            BackendError: every try failed.
        """
        return await self._request("GET", path, lambda: None, read)

    async def post(
        self,
        path: str,
        payload: Callable[[], Mapping[str, Any]],
        read: Callable[[bytes], T] = orjson.loads,
        bill: Bill | None = None,
    ) -> T:
        """The JSON that answers POST ``path``; ``payload`` is asked for anew at each try.

        Args:
            read: makes what is returned of the answer's bytes, in a thread.
            bill: told about each try that is sent, and each that is refused.

        Raises:
            BackendError: every try failed, or may cost too much.
        """
        return await self._request("POST", path, payload, read, bill)

    async def close(self) -> None:
        await self._client.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        payload: Callable[[], Mapping[str, Any] | None],
        read: Callable[[bytes], T],
        bill: Bill | None = None,
    ) -> T:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, _FailedTryError) and e.again),
            wait=_pause,
            stop=tenacity.stop_after_attempt(self._api.attempts),
            reraise=True,
        )
        try:
            async with self._slot():
                body: bytes = await retrying(self._try, method, path, payload, bill)
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

    async def _try(
        self, method: str, path: str, payload: Callable[[], Mapping[str, Any] | None], bill: Bill | None
    ) -> bytes:
        async def traced(event: str, about: object) -> None:
            if event == _CONNECTED:
                self._on_doubt()
            elif bill is not None and event.endswith(_SENDING):
                bill.sent()

        await self._keep_to_limits()
        if bill is not None:
            bill.trying()
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
                    method,
                    self._base_url + path,
                    content=_content(payload()),
                    headers=headers,
                    extensions={"trace": traced},
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
            # Cancelled: a half-open breaker would else wait for ever for how its one try ended.
            self._breaker.abandoned()
            raise
        finally:
            gauge.dec()
            self._metrics.upstream_seconds.labels(self._api.name).observe(time.perf_counter() - started)
        self._limits.read(response)
        if response.is_success:
            self._breaker.succeeded()
            self._on_success()
            return response.content
        if bill is not None:
            bill.refused()
        raise self._refused(response)

    async def _keep_to_limits(self) -> None:
        while (left := self._limits.seconds_left) > 0:
            if left > LONGEST_BACKOFF_SECONDS:
                text = f"{self._where} allows no more requests for {left:.0f} s"
                raise _FailedTryError(BackendError(text, FailureKind.BUSY, retry_after=left), again=False)
            await asyncio.sleep(left)

    def _failed(self, label: str, what: str, kind: FailureKind, retry_after: float | None = None) -> _FailedTryError:
        self._breaker.failed()
        self._on_doubt()
        self._metrics.upstream_errors.labels(self._api.name, label).inc()
        again = retry_after is None or retry_after <= LONGEST_BACKOFF_SECONDS
        return _FailedTryError(BackendError(f"{self._where} {what}", kind, retry_after=retry_after), again=again)

    def _refused(self, response: httpx.Response) -> _FailedTryError:
        status = response.status_code
        what = f"answers {status}: {without_key(error_text(response.content), self._api.key)}"
        if status == httpx.codes.INTERNAL_SERVER_ERROR and self._api.blames_request(response.content):
            self._breaker.abandoned()
            self._metrics.upstream_errors.labels(self._api.name, str(status)).inc()
            return _FailedTryError(BackendError(f"{self._where} {what}", FailureKind.BROKEN), again=False)
        if status in _RETRIED:
            if status == httpx.codes.TOO_MANY_REQUESTS:
                self._on_rate_limited()
            kind = _KINDS.get(status, FailureKind.GONE)
            failed = self._failed(str(status), what, kind, retry_after(response.headers))
            # A server that is gone or too busy does not say this of itself.
            failed.error.one_may_cause = status == httpx.codes.INTERNAL_SERVER_ERROR
            return failed
        if self._api.counts_refusals:
            self._breaker.failed()
        else:
            self._breaker.abandoned()
        self._metrics.upstream_errors.labels(self._api.name, str(status)).inc()
        kind = _KINDS.get(status, FailureKind.REFUSED if 400 <= status < 500 else FailureKind.BROKEN)
        if kind is FailureKind.MISCONFIGURED:
            what += f"; {'check the credit of' if status == 402 else 'set'} {self._api.key_setting}"
        return _FailedTryError(BackendError(f"{self._where} {what}", kind), again=False)


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
    # Attempts count from 1: 0.5 to 1 s before the second, 1 to 2 s before the third, and so on.
    bound = min(LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0**state.attempt_number)
    return random.uniform(bound / 2, bound)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
