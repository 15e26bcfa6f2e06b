"""A run's metrics for Prometheus, read from its status at every scrape."""

import math
from collections.abc import Iterator, Mapping

import torch
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from latentforge.core.metrics import new_registry
from latentforge.trainer.run.status import Status


def registry_of(status: Status) -> CollectorRegistry:
    """A registry with a run's metrics and its process's."""
    registry = new_registry()
    registry.register(StatusCollector(status))
    return registry


class StatusCollector(Collector):
    """What a status says, as metrics; each has the run's name as a label.

    Counters count since the process began, as Prometheus expects of them. A figure that is unknown, or not finite, is
    left out.
    """

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        s = self._status
        stage = {"stage": s.stage}
        yield self._gauge("step", "Steps that are done of the stage.", stage, s.step)
        yield self._gauge("steps", "Steps of the stage.", stage, s.of)
        yield self._gauge("eta_seconds", "Seconds left in the stage.", stage, s.eta)
        yield self._gauge("run_eta_seconds", "Seconds left in the whole run.", {}, s.run_eta)
        yield self._gauge("tokens_per_second", "Over the newest steps.", stage, s.tokens_per_s)
        yield self._named("loss", "Figures of the newest step, by name.", "term", s.losses, stage)
        yield self._named("held_out", "Newest held-out figures, by name.", "figure", s.held_out_figures, stage)
        yield self._counted("tokens", "Tokens that were trained on, by stage.", "stage", s.tokens)
        yield self._counted(
            "checkpoints_published", "Checkpoints that were published.", None, {"": s.checkpoints_published}
        )
        waited = {} if s.teacher_wait_seconds is None else {"": s.teacher_wait_seconds}
        yield self._counted("teacher_wait_seconds", "Seconds for which the teacher was waited for.", None, waited)
        yield self._counted(
            "teacher_sequences",
            "Sequences that the teacher gave rows for, by where they came from: cache or teacher.",
            "source",
            _divided(s.teacher_rows, "sequences", "hits"),
        )
        yield self._counted(
            "teacher_rows",
            "Rows that the teacher gave, by where they came from: cache or teacher.",
            "source",
            _divided(s.teacher_rows, "rows", "rows_from_cache"),
        )
        yield self._counted("incidents", "What went wrong and was got over, by kind.", "kind", s.counts)
        yield self._gauge("done", "1 once the run is finished.", {}, float(s.done))
        yield self._gauge("failed", "1 once the run has failed.", {}, float(s.error is not None))
        # Asked for only where the run has begun to use it: asking would begin it.
        if torch.cuda.is_initialized():
            memory = {
                "allocated": torch.cuda.memory_allocated(),
                "reserved": torch.cuda.memory_reserved(),
                "peak": torch.cuda.max_memory_allocated(),
            }
            yield self._named("gpu_memory_bytes", "GPU memory of this process, by kind.", "kind", memory, {})

    def _gauge(self, name: str, documentation: str, labels: Mapping[str, str], value: float | None) -> Metric:
        family = GaugeMetricFamily(f"trainer_{name}", documentation, labels=["run", *labels])
        if value is not None and math.isfinite(value):
            family.add_metric([self._status.run, *labels.values()], value)
        return family

    def _named(
        self, name: str, documentation: str, label: str, values: Mapping[str, float], labels: Mapping[str, str]
    ) -> Metric:
        family = GaugeMetricFamily(f"trainer_{name}", documentation, labels=["run", *labels, label])
        # A copy: the run's thread may add to it meanwhile.
        for key, value in dict(values).items():
            if math.isfinite(value):
                family.add_metric([self._status.run, *labels.values(), key], value)
        return family

    def _counted(self, name: str, documentation: str, label: str | None, values: Mapping[str, float]) -> Metric:
        labels = ["run"] if label is None else ["run", label]
        family = CounterMetricFamily(f"trainer_{name}", documentation, labels=labels)
        for key, value in dict(values).items():
            family.add_metric([self._status.run] if label is None else [self._status.run, key], value)
        return family


def _divided(counts: Mapping[str, int], all_of: str, cached: str) -> dict[str, int]:
    """Counts of both sources, from that of all and that of what was cached."""
    if all_of not in counts:
        return {}
    return {"cache": counts[cached], "teacher": counts[all_of] - counts[cached]}
