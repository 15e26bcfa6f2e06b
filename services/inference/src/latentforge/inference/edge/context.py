"""Around every request: its id, its line in the log, its metrics, its span, and an error body when all else failed."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from latentforge.core.http.answering import Answering, method_of, route_of
from latentforge.core.logs import bind_log_fields, log_exception, log_fields
from latentforge.core.request_id import REQUEST_ID, request_id_of
from latentforge.core.tracing import ServerSpan, Tracing
from latentforge.inference.operation.metrics import InferenceMetrics
from latentforge.inference.operation.request_record import RequestRecord, open_record
from latentforge.inference.rest.errors import error_response

# Probes and scrapes come every few seconds and would bury everything else.
_QUIET = {"/health", "/ready", "/metrics"}

logger = logging.getLogger(__name__)


class RequestContext:
    """Echoes the caller's x-request-id, or makes one; answers 500 in the API's own shape.

    What a caller sent stands in a line of the log only where it is a path of ours; its query never does.
    """

    def __init__(self, app: ASGIApp, metrics: InferenceMetrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = open_record(request_id_of(headers.get(REQUEST_ID, "")))
        bind_log_fields(request_id=record.request_id)
        start = time.perf_counter()
        span = None if self._tracing is None or scope["path"] in _QUIET else _start_span(self._tracing, scope, headers)
        answer = Answering(send, record.request_id)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            log_exception(logger, f"request {record.request_id} failed", error)
            if answer.status:
                raise
            message = f"the server failed; its log says why under request id {record.request_id}"
            await error_response(500, "internal_error", message)(scope, receive, answer.send)
        finally:
            self._tell(scope, record, answer.status, time.perf_counter() - start, span)

    def _tell(self, scope: Scope, record: RequestRecord, status: int, seconds: float, span: ServerSpan | None) -> None:
        method, path = method_of(scope), route_of(scope)
        self._metrics.count_request(path, method, status, seconds)
        fields = {"method": method, "path": path, "status": status, "milliseconds": round(1000 * seconds, 3)}
        if span is not None:
            attributes: dict[str, Any] = {
                "http.route": path,
                "http.response.status_code": status,
                "latentforge.request_id": record.request_id,
                **{f"latentforge.{name}": value for name, value in record.fields().items()},
            }
            span.end(attributes, str(status) if status >= 500 else None)
        level = logging.DEBUG if path in _QUIET else logging.INFO
        if logger.isEnabledFor(level):
            fields |= record.fields()
            logger.log(level, "%s", _sentence(fields, record.request_id), extra=log_fields(**fields))


def _start_span(tracing: Tracing, scope: Scope, headers: Mapping[str, str]) -> ServerSpan:
    # Its path may be anything; the route is known once it is answered.
    method = method_of(scope)
    return tracing.start_server_span(f"HTTP {method}", headers, {"http.request.method": method})


def _sentence(fields: Mapping[str, Any], request_id: str) -> str:
    said = f"{fields['method']} {fields['path']} {fields['status']} in {fields['milliseconds']:.0f} ms"
    if "checkpoint" in fields:
        tokens = f"{fields.get('prompt_tokens', 0)} + {fields.get('completion_tokens', 0)} tokens"
        said += f", {fields['checkpoint']}, {tokens}"
    return f"{said} ({request_id})"
