"""Around every call: its id, its metrics, its line in the log, its trace, and the status that it ends with."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from latentforge.core.logs import bind_log_fields, log_exception, log_fields
from latentforge.core.request_id import REQUEST_ID, request_id_of
from latentforge.core.tracing import Tracing
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.keys import KeyRefusedError, Keys
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.rpc.errors import ApiError, log_teacher_failure, teacher_failed
from latentforge.gateway.scoring.callers import Caller, calling_as
from latentforge.gateway.telemetry import end_call, start_call
from latentforge.teacher.v1 import teacher_pb2

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["TeacherService"].full_name
# Statuses that somebody who runs the gateway should look at.
_WARNED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INTERNAL,
}


@dataclass
class Call:
    """One call of the teacher API, and what is counted while it is answered."""

    method: str
    request_id: str
    tokens: int = 0
    rows: int = 0
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str | None = None


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def count(*, tokens: int = 0, rows: int = 0) -> None:
    """Adds to the counts of the call that is being answered; they are in its line of the log."""
    if (call := _current.get()) is not None:
        call.tokens += tokens
        call.rows += rows


async def abort(context: Context, error: ApiError) -> NoReturn:
    """Ends a call with a status and its google.rpc details."""
    status = rpc_status.to_status(error.status())
    call = _current.get()
    if call is not None:
        call.code, call.reason = error.code, error.reason
    # In the trailer, not in a header: after a header of its own a failed call would no longer be retried by gRPC.
    request_id = () if call is None else ((REQUEST_ID, call.request_id),)
    await context.abort(status.code, status.details, (*status.trailing_metadata, *request_id))
    raise AssertionError("abort always raises")


class HandlerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Puts another handler in the place of a method's."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return None if handler is None else self.wrapped(handler, handler_call_details)

    def wrapped(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        """The handler to call, which may be ``handler`` itself."""
        raise NotImplementedError


class CallInterceptor(HandlerInterceptor):
    """Watches the calls of the teacher API, and says whose they are; health and reflection pass by.

    Args:
        keys: tell callers by name; who sends none that is known is told by his connection.
    """

    def __init__(self, metrics: Metrics, keys: Keys, tracing: Tracing | None = None) -> None:
        self._metrics = metrics
        self._keys = keys
        self._tracing = tracing

    def wrapped(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        service, _, method = details.method.rpartition("/")
        if service != f"/{SERVICE}":
            return handler
        metadata = {k: v for k, v in details.invocation_metadata if isinstance(v, str)}
        authorization = authorization_of(details.invocation_metadata)

        async def unary(data: bytes, context: Context) -> Any:
            async with self._watched(method, metadata, authorization, context) as call:
                response = await handler.unary_unary(_parsed(handler, data), context)
                await _sent(context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
                return response

        async def stream(data: bytes, context: Context) -> None:
            async with self._watched(method, metadata, authorization, context) as call:
                begun = False
                # Closed here and now when the caller leaves, not when the garbage is collected.
                async with aclosing(handler.unary_stream(_parsed(handler, data), context)) as responses:
                    async for response in responses:
                        if not begun:
                            await _sent(context.send_initial_metadata(((REQUEST_ID, call.request_id),)))
                            begun = True
                        await _sent(context.write(response))

        # Requests are parsed in here: what gRPC cannot parse it answers with UNKNOWN and a traceback in the log.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)

    @asynccontextmanager
    async def _watched(
        self, method: str, metadata: dict[str, str], authorization: str | None, context: Context
    ) -> AsyncIterator[Call]:
        call = Call(method, request_id_of(metadata.get(REQUEST_ID, "")))
        _current.set(call)
        bind_log_fields(request_id=call.request_id)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        self._metrics.in_flight.inc()
        started = time.perf_counter()
        span = None if self._tracing is None else start_call(self._tracing, f"{SERVICE}/{method}", metadata)
        try:
            async with _failures_told(call.request_id, method, context):
                with calling_as(self._caller(authorization, context)):
                    yield call
        except asyncio.CancelledError:
            late = (left := context.time_remaining()) is not None and left <= 0
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.in_flight.dec()
            self._metrics.requests.labels(method, call.code.name).inc()
            self._metrics.request_seconds.labels(method).observe(seconds)
            if span is not None:
                end_call(span, call.code, call.request_id, tokens=call.tokens, rows=call.rows)
            _log_line(call, seconds, context)

    def _caller(self, authorization: str | None, context: Context) -> Caller:
        connection = str(context.peer())
        try:
            return self._keys.caller(authorization, connection)
        except KeyRefusedError:
            # He is refused within, over the same metadata.
            return Caller(connection)


def authorization_of(metadata: Any) -> str | None:
    """What a call's metadata say of its key: the first, where they say it twice.

    Whoever lets a call in and whoever counts it both ask here: were one to read another key, a quota could be evaded.
    """
    return next((str(value) for name, value in metadata or () if name == "authorization"), None)


async def _sent(sending: Awaitable[None]) -> None:
    """Waits until something is sent; a caller who is gone by then has cancelled the call."""
    try:
        await sending
    except grpc.aio.BaseError:
        # It may come before gRPC cancels this task: of a connection that broke while an answer was on its way.
        raise asyncio.CancelledError from None


def _parsed(handler: Any, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except ApiError:
        raise
    except Exception:
        text = "the request is no message of its type; make it with stubs of teacher.proto"
        raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, text, reason="MALFORMED_REQUEST") from None


@asynccontextmanager
async def _failures_told(request_id: str, method: str, context: Context) -> AsyncIterator[None]:
    """Turns what a call raises into its status. Whatever it is, no text of a caller reaches the log."""
    try:
        yield
        return
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except ApiError as error:
        failure = error
    except BackendError as error:
        log_teacher_failure(error)
        failure = teacher_failed(error)
    except Exception as error:
        log_exception(logger, f"{method} failed unexpectedly", error)
        failure = ApiError(
            grpc.StatusCode.INTERNAL,
            f"the gateway failed; its log says more under request id {request_id}",
            reason="GATEWAY_FAILED",
        )
    await abort(context, failure)


def _log_line(call: Call, seconds: float, context: Context) -> None:
    level = logging.WARNING if call.code in _WARNED else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "method": call.method,
        "status": call.code.name,
        "milliseconds": round(1000 * seconds, 3),
        "tokens": call.tokens,
        "rows": call.rows,
        "peer": context.peer(),
    }
    if call.reason is not None:
        fields["reason"] = call.reason
    text = "%s %s in %.1f ms: %d tokens, %d rows"
    logger.log(
        level, text, call.method, call.code.name, 1000 * seconds, call.tokens, call.rows, extra=log_fields(**fields)
    )
