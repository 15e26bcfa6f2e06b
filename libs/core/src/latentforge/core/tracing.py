"""Traces over OTLP. Nothing of OpenTelemetry is imported unless an endpoint is set."""

import contextvars
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from latentforge.core.proxies import is_loopback

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind

SpanValue = str | int | float

_SHUTDOWN_MILLISECONDS = 3000

# The tracing that is on and the innermost open span of what is being answered.
_open: contextvars.ContextVar["tuple[Tracing, Span] | None"] = contextvars.ContextVar("open_span", default=None)


class ServerSpan:
    """The span of one request, the parent of every :func:`span` that its task and what it starts open."""

    def __init__(self, span: "Span") -> None:
        self._span = span

    def end(self, attributes: Mapping[str, SpanValue], failure: str | None = None) -> None:
        """Ends it; ``failure`` marks it as failed and says how, in words of ours."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(dict(attributes))
        if failure is not None:
            self._span.set_status(StatusCode.ERROR, failure)
        self._span.end()


class Tracing:
    """Sends spans to an OTLP endpoint over gRPC.

    Args:
        endpoint: http://host:4317, or https.
        service: its name.
        version: of this service.
    """

    def __init__(self, endpoint: str, service: str, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service, "service.version": version})
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
        self._tracer = self._provider.get_tracer(f"latentforge.{service}")
        self._propagator = TraceContextTextMapPropagator()

    def start_server_span(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, SpanValue]
    ) -> ServerSpan:
        """A request's span; it continues the caller's trace where ``headers`` has a W3C traceparent."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        caller = self._propagator.extract(headers, Context())
        span = self._tracer.start_span(name, caller, SpanKind.SERVER, dict(attributes))
        _open.set((self, span))
        return ServerSpan(span)

    def start_child(
        self, name: str, parent: "Span", kind: "SpanKind", attributes: Mapping[str, Any], start: int | None = None
    ) -> "Span":
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, set_span_in_context(parent), kind, dict(attributes), start_time=start)

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
    attributes: Mapping[str, SpanValue] | None = None,
    *,
    kind: Literal["internal", "client"] = "internal",
    within: contextvars.Context | None = None,
) -> Iterator[Callable[[str, SpanValue], None]]:
    """A part of the request that is being answered; costs a look-up where nothing is traced.

    Args:
        within: where the request is answered, for work that is done elsewhere.

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


def past_span(name: str, start: float, end: float, attributes: Mapping[str, SpanValue] | None = None) -> None:
    """A part of the request that is being answered which is over already, such as its time in a queue.

    Args:
        start, end: as :func:`time.time` counts, in seconds.
    """
    outer = _open.get()
    if outer is None:
        return
    from opentelemetry.trace import SpanKind

    tracing, parent = outer
    past = tracing.start_child(name, parent, SpanKind.INTERNAL, attributes or {}, start=round(1e9 * start))
    past.end(end_time=round(1e9 * end))


def _ignore(name: str, value: SpanValue) -> None:
    pass


def trace_headers() -> dict[str, str]:
    """The W3C headers that let a server that is asked now continue the trace; empty where nothing is traced."""
    current = _open.get()
    return {} if current is None else current[0].headers(current[1])
