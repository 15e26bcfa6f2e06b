"""What the gateway counts, in a registry of its own, and the HTTP server that gives it to Prometheus."""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from latentforge.core.metrics import new_registry
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import bare_host, host_port

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Prometheus collectors. Labels hold names of ours only, never what a caller sent."""

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
        self.breaker_open = Gauge(
            "gateway_breaker_open", "1 while nothing is sent because too much failed.", ["name"], registry=self.registry
        )


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
