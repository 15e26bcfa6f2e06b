"""Traces over OTLP. Nothing of OpenTelemetry is imported unless an endpoint is set."""

import contextvars
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import grpc

from latentforge.core.proxies import is_loopback

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind

Value = str | int | float

_SHUTDOWN_MILLISECONDS = 3000


class CallSpan:
    """The span of one call, the parent of every :func:`span` that the call's task and what it starts open."""

    def __init__(self, tracing: "Tracing", span: "Span") -> None:
        self._tracing = tracing
        self._span = span

    def end_call(self, code: grpc.StatusCode, request_id: str, *, tokens: int, rows: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(
            {
                "rpc.grpc.status_code": code.value[0],
                "latentforge.request_id": request_id,
                "latentforge.tokens": tokens,
                "latentforge.rows": rows,
            }
        )
        if code is not grpc.StatusCode.OK:
            self._span.set_status(StatusCode.ERROR, code.name)
        self._span.end()


# The tracing that is on and the innermost open span of what is being answered.
_open: contextvars.ContextVar["tuple[Tracing, Span] | None"] = contextvars.ContextVar("open_span", default=None)


class Tracing:
    """Sends spans to an OTLP endpoint over gRPC.

    Args:
        endpoint: http://host:4317, or https.
        version: of this service.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "teacher-gateway", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Annotated as strings, which gRPC passes over where it wants a number.
        options: Any = (("grpc.enable_http_proxy", int(not is_loopback(endpoint))),)
        exporter = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=not endpoint.startswith("https://"),
            channel_options=options,
        )
        self._processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("latentforge.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def start_call(self, method: str, metadata: Mapping[str, str]) -> CallSpan:
        """The server's span; it continues the caller's trace where ``metadata`` has a W3C traceparent."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        caller = self._propagator.extract(metadata, Context())
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(method, caller, SpanKind.SERVER, attributes)
        _open.set((self, span))
        return CallSpan(self, span)

    def start_child(self, name: str, parent: "Span", kind: "SpanKind", attributes: Mapping[str, Any]) -> "Span":
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, set_span_in_context(parent), kind, dict(attributes))

    def headers(self, span: "Span") -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._provider.force_flush(_SHUTDOWN_MILLISECONDS)
        self._provider.shutdown()


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, Value] | None = None,
    *,
    kind: Literal["internal", "client"] = "internal",
    within: contextvars.Context | None = None,
) -> Iterator[Callable[[str, Value], None]]:
    """A part of the call that is being answered; costs a look-up where nothing is traced.

    Args:
        within: where the call is answered, for work that is done elsewhere.

    Yields:
        What sets another attribute.
    """
    outer = _open.get() if within is None else within.get(_open)
    if outer is None:
        yield _ignore
        return
    from opentelemetry.trace import SpanKind, StatusCode

    tracing, parent = outer
    child = tracing.start_child(name, parent, SpanKind[kind.upper()], attributes or {})
    token = _open.set((tracing, child))
    try:
        yield child.set_attribute
    except BaseException as error:
        # Its type only: the text may quote a request.
        child.set_status(StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        child.end()
        # A generator that is closed by somebody else ends in another context, which has nothing to reset.
        with suppress(ValueError):
            _open.reset(token)


def _ignore(name: str, value: Value) -> None:
    pass


def trace_headers() -> dict[str, str]:
    """The W3C headers that let a server that is asked now continue the trace; empty where nothing is traced."""
    current = _open.get()
    return {} if current is None else current[0].headers(current[1])
