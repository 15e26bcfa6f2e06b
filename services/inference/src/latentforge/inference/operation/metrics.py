"""What inference counts, in a registry of its own."""

from collections.abc import Callable, Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from latentforge.core.metrics import exposition, new_registry

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_TOKEN_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class InferenceMetrics:
    """Prometheus collectors. Labels hold names of ours only, never what a caller sent."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.requests = Counter(
            "inference_requests",
            "Requests that ended, by route and HTTP status; 0 where the client left before its answer.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "inference_http_seconds",
            "Time of a request, from its headers to the end of its answer.",
            ["path", "method", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "inference_time_to_first_token_seconds",
            "From a text's submission to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.time_per_output_token = Histogram(
            "inference_time_per_output_token_seconds",
            "Time of a text between its first and its last step, for each token behind the first step's.",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "inference_queue_seconds", "Time of a text until it has a slot.", buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram("inference_batch_size", "Texts of a step.", buckets=_BATCH, registry=self.registry)
        self.texts = Counter(
            "inference_texts",
            "Texts that ended: stop, length, scored, cancelled, deadline or failed.",
            ["outcome"],
            registry=self.registry,
        )
        self.tokens_drawn = Counter("inference_tokens_drawn", "Tokens of answers.", registry=self.registry)
        self.prompt_tokens = Counter("inference_prompt_tokens", "Tokens of prompts.", registry=self.registry)

    def count_request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Counts a request that ended; ``path`` is its route's template."""
        self.requests.labels(path, str(status)).inc()
        self.http_seconds.labels(path, method, str(status)).observe(seconds)

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A figure that is asked for at every scrape."""
        Gauge(name, documentation, registry=self.registry).set_function(value)

    def counter(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """What somebody else counts, asked for at every scrape; ``name`` is without its ``_total``."""
        self.registry.register(_CountedElsewhere(name, documentation, value))

    def exposition(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return exposition(self.registry)


class _CountedElsewhere(Collector):
    def __init__(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._value = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._value())
