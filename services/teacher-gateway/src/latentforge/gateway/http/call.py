"""Around every HTTP request: its id, its key, its metrics, its line in the log, its span, and the error that it ends
with."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from latentforge.core.http.answering import Answering, method_of, route_of
from latentforge.core.logs import bind_log_fields, log_exception, log_fields
from latentforge.core.request_id import REQUEST_ID, request_id_of
from latentforge.core.tracing import ServerSpan, Tracing
from latentforge.gateway.http.access import caller_of
from latentforge.gateway.http.errors import CLIENT_GONE, HttpError
from latentforge.gateway.keys import Keys
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.scoring.callers import calling_as

# Whoever watches over the gateway need not have its key, and asks every few seconds.
_PROBES = {"/health", "/health/", "/ping", "/live"}
_SCOPE_KEY = "latentforge.call"

logger = logging.getLogger(__name__)


@dataclass
class HttpCall:
    """One request, and what is counted while it is answered."""

    request_id: str
    tokens: int = 0
    rows: int = 0
    code: str | None = None


def call_of(request: Request) -> HttpCall:
    """The call that ``request`` is."""
    call = request.scope[_SCOPE_KEY]
    assert isinstance(call, HttpCall)
    return call


class HttpCalls:
    """Stands before the application. What a caller sent stands in no line of the log and in no metric."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: Keys, tracing: Tracing | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._keys = keys
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = HttpCall(request_id_of(headers.get(REQUEST_ID, "")))
        scope[_SCOPE_KEY] = call
        bind_log_fields(request_id=call.request_id)
        span = self._start_span(scope, headers)
        self._metrics.in_flight.inc()
        started = time.perf_counter()
        answer = Answering(send, call.request_id)
        try:
            if scope["path"] in _PROBES:
                await self.app(scope, receive, answer.send)
            else:
                # Those whose keys have no names take turns by connection, as over gRPC.
                host, port = scope.get("client") or ("", 0)
                caller = caller_of(self._keys, headers.get("authorization"), f"http:{host}:{port}")
                with calling_as(caller):
                    await self.app(scope, receive, answer.send)
        except HttpError as refusal:
            call.code = refusal.code
            await refusal.response()(scope, receive, answer.send)
        except Exception as error:
            log_exception(logger, "a request failed unexpectedly", error)
            if answer.status:
                raise
            text = f"the gateway failed; its log says more under request id {call.request_id}"
            await HttpError(500, "gateway_failed", text).response()(scope, receive, answer.send)
        finally:
            self._metrics.in_flight.dec()
            self._tell(scope, call, answer.status or CLIENT_GONE, time.perf_counter() - started, span)

    def _start_span(self, scope: Scope, headers: Headers) -> ServerSpan | None:
        if self._tracing is None or scope["path"] in _PROBES:
            return None
        method = method_of(scope)
        return self._tracing.start_server_span(f"HTTP {method}", headers, {"http.request.method": method})

    def _tell(self, scope: Scope, call: HttpCall, status: int, seconds: float, span: ServerSpan | None) -> None:
        # The route's own, since what was asked may be anything.
        method, path = method_of(scope), route_of(scope)
        self._metrics.http_requests.labels(path, str(status)).inc()
        self._metrics.http_request_seconds.labels(path).observe(seconds)
        fields: dict[str, Any] = {
            "method": f"{method} {path}",
            "status": status,
            "milliseconds": round(1000 * seconds, 3),
            "tokens": call.tokens,
            "rows": call.rows,
        }
        if call.code is not None:
            fields["reason"] = call.code
        if span is not None:
            span.end(
                {
                    "http.route": path,
                    "http.response.status_code": status,
                    "latentforge.request_id": call.request_id,
                    "latentforge.tokens": call.tokens,
                    "latentforge.rows": call.rows,
                },
                str(status) if status >= 500 else None,
            )
        level = logging.WARNING if status >= 500 or status == 429 else logging.INFO
        if path in _PROBES:
            level = logging.DEBUG
        if logger.isEnabledFor(level):
            text = "%s %d in %.1f ms: %d tokens, %d rows"
            arguments = fields["method"], status, 1000 * seconds, call.tokens, call.rows
            logger.log(level, text, *arguments, extra=log_fields(**fields))
