"""What the engine does, as Prometheus sees it."""

from latentforge.inference.operation.metrics import InferenceMetrics
from latentforge.model.engine.observer import EngineObserver, Outcome
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from latentforge.model.engine.timings import Timings


class EngineMetrics(EngineObserver):
    """Counts in the engine's thread."""

    def __init__(self, metrics: InferenceMetrics) -> None:
        self._metrics = metrics

    def on_prefill(self, num_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(num_tokens)

    def on_step(self, batch_size: int, num_tokens: int) -> None:
        self._metrics.batch_size.observe(batch_size)
        self._metrics.tokens_drawn.inc(num_tokens)

    def on_end(self, request: GenerationRequest | ScoringRequest, outcome: Outcome, timings: Timings) -> None:
        self._metrics.texts.labels(outcome).inc()
        self._metrics.queue_seconds.observe(timings.queue_seconds)
        if (first := timings.first_token_seconds) is not None:
            self._metrics.time_to_first_token.observe(first)
        # The first step's tokens are there at its end; those behind them take the time that follows.
        later = timings.num_tokens * (timings.steps - 1) / timings.steps if timings.steps else 0.0
        if later:
            self._metrics.time_per_output_token.observe(timings.decode_seconds / later)
