"""What the gateway counts, in a registry of its own, and the HTTP server that gives it to Prometheus."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server

from latentforge.core.metrics import new_registry
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import bare_host, host_port

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics:
    """Prometheus collectors, all of ``gateway_``. Labels hold names of ours and of keys, never what a caller sent."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.requests = Counter(
            "gateway_requests",
            "Calls that ended, by method and gRPC status.",
            ["method", "code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "gateway_request_seconds", "Time of a call.", ["method"], buckets=_SECONDS, registry=self.registry
        )
        self.http_requests = Counter(
            "gateway_http_requests", "HTTP requests, by route and status.", ["path", "code"], registry=self.registry
        )
        self.http_request_seconds = Histogram(
            "gateway_http_request_seconds",
            "Time of an HTTP request.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("gateway_in_flight", "Calls being answered.", registry=self.registry)
        self.rows = Counter(
            "gateway_rows", "Rows given, by source: cache or teacher.", ["source"], registry=self.registry
        )
        self.lookups = Counter(
            "gateway_cache_lookups",
            "Sequences looked up: hit, miss, corrupt or error.",
            ["result"],
            registry=self.registry,
        )
        self.cache_dropped_writes = Counter(
            "gateway_cache_dropped_writes",
            "Entries not kept because too many were queued to be written, or the store takes none.",
            registry=self.registry,
        )
        self.upstream_seconds = Histogram(
            "gateway_upstream_seconds",
            "Time of one try at the teacher's API.",
            ["api"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.upstream_errors = Counter(
            "gateway_upstream_errors",
            "Failed tries, by HTTP status or kind of failure.",
            ["api", "error"],
            registry=self.registry,
        )
        self.upstream_in_flight = Gauge(
            "gateway_upstream_in_flight", "Requests open at the teacher's API.", ["api"], registry=self.registry
        )
        self.upstream_usd = Counter(
            "gateway_upstream_usd", "Cost of the teacher's answers at list price.", ["api"], registry=self.registry
        )
        self._breaker_open = Gauge(
            "gateway_breaker_open", "1 while nothing is sent because too much failed.", ["name"], registry=self.registry
        )
        self._breaker_changes = Counter(
            "gateway_breaker_changes", "Breakers that opened or closed.", ["name", "to"], registry=self.registry
        )
        self._queue_sequences = Gauge(
            "gateway_queue_sequences", "Sequences queued for the teacher.", registry=self.registry
        )
        self._queue_tokens = Gauge("gateway_queue_tokens", "Tokens queued for the teacher.", registry=self.registry)
        self._queue_callers = Gauge(
            "gateway_queue_callers", "Callers with something queued for the teacher.", registry=self.registry
        )
        self._queue_seconds = Histogram(
            "gateway_queue_seconds", "Wait of a sequence for the teacher.", buckets=_SECONDS, registry=self.registry
        )
        self._batch_sequences = Histogram(
            "gateway_batch_sequences", "Sequences of a batch.", buckets=_SEQUENCES, registry=self.registry
        )
        self._batch_tokens = Histogram(
            "gateway_batch_tokens", "Tokens of a batch, padding left out.", buckets=_TOKENS, registry=self.registry
        )
        self.key_tokens = Counter(
            "gateway_key_tokens",
            "Tokens computed by the teacher, by key's name.",
            ["key"],
            registry=self.registry,
        )
        self.key_refusals = Counter(
            "gateway_key_refusals", "Calls beyond the quota, by the key's name.", ["key"], registry=self.registry
        )
        Info("gateway_build", "What runs.", registry=self.registry).info(
            {"version": version("latentforge-teacher-gateway"), "python": platform.python_version()}
        )

    def breaker(self, name: str) -> Callable[[bool], None]:
        """What a breaker of this name tells its changes to; it is shown as closed until it does."""
        is_open = self._breaker_open.labels(name)
        changes = {to: self._breaker_changes.labels(name, to) for to in ("open", "closed")}

        def changed(to_open: bool) -> None:
            is_open.set(to_open)
            changes["open" if to_open else "closed"].inc()

        return changed

    def watch_queue(
        self, sequences: Callable[[], float], tokens: Callable[[], float], callers: Callable[[], float]
    ) -> None:
        """Has the queue's sizes read whenever somebody asks for the metrics."""
        self._queue_sequences.set_function(sequences)
        self._queue_tokens.set_function(tokens)
        self._queue_callers.set_function(callers)

    def batch_begins(self, lengths: Sequence[int], waits: Sequence[float]) -> None:
        """Notes a batch: the tokens of each of its sequences, and the seconds that each was queued."""
        self._batch_sequences.observe(len(lengths))
        self._batch_tokens.observe(sum(lengths))
        for seconds in waits:
            self._queue_seconds.observe(seconds)


class MetricsServer:
    """Answers GET /metrics in a thread of its own.

    Raises:
        SettingsError: the address is unavailable.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, bare_host(host), metrics.registry)
        except OSError as error:
            text = f"cannot serve metrics on {host_port(host, port)} ({error.strerror})"
            raise SettingsError(f"{text}; set GATEWAY_METRICS_PORT to a free port, or leave it unset") from None
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
