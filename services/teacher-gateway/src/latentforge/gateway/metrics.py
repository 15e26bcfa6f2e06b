"""What the gateway counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Prometheus collectors. Labels hold names of ours only, never what a caller sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.breaker_open = Gauge(
            "gateway_breaker_open", "1 while nothing is sent because too much failed.", ["name"], registry=self.registry
        )
