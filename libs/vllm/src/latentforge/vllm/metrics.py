"""What the drafter counts, beside vLLM's own figures.

vLLM's API server and its engine are processes of their own, and the drafter runs in the engine's. Both write to the
folder PROMETHEUS_MULTIPROC_DIR, where that is set, and vLLM's page /metrics shows what is in it. So nothing here is an
Info or a collector, which have no part in that.
"""

import logging
import os
from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from latentforge.vllm.pending import Verified

logger = logging.getLogger(__name__)

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024)
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class DrafterMetrics:
    """Prometheus collectors. Labels hold names of runs and positions of drafts, never what a caller sent.

    Args:
        registry: where they are; vLLM's own by default.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.drafts = Counter(
            "latentforge_drafter_drafts",
            "Texts of steps that a draft was made for, those that got an empty one among them.",
            registry=registry,
        )
        self.drafted = Counter("latentforge_drafter_drafted_tokens", "Tokens of drafts.", registry=registry)
        self.looked_up = Counter(
            "latentforge_drafter_looked_up_drafts",
            "Drafts of what stood in the text before; the student was not asked for them.",
            registry=registry,
        )
        self._verified = Counter(
            "latentforge_drafter_verified_tokens",
            "Drafted tokens that the teacher has read, by position in the draft, from 1.",
            ["position"],
            registry=registry,
        )
        self._accepted = Counter(
            "latentforge_drafter_accepted_tokens",
            "Drafted tokens that the teacher took, by position in the draft, from 1.",
            ["position"],
            registry=registry,
        )
        self.seconds = Histogram(
            "latentforge_drafter_seconds",
            "Time to draft for all texts of a step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.acceptance = Gauge(
            "latentforge_drafter_acceptance",
            "Tokens taken of a draft, mean of the last full window of the version that drafts.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._step = Gauge(
            "latentforge_drafter_checkpoint_step",
            "Step of the checkpoint that drafts; 0 for a run that does not.",
            ["run"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.swaps = Counter(
            "latentforge_drafter_swaps", "Changes of the version that drafts, the first among them.", registry=registry
        )
        self.rollbacks = Counter(
            "latentforge_drafter_rollbacks", "Returns to the last version for its acceptance.", registry=registry
        )
        self._quarantines = Counter(
            "latentforge_drafter_quarantines", "Checkpoints that failed a check, or drafted badly.", registry=registry
        )
        self.failures = Counter(
            "latentforge_drafter_failures", "Steps in which drafting failed, and gave none.", registry=registry
        )
        self._run: str | None = None
        self._num_quarantines = 0

    def count_verified(self, drafts: Sequence[Verified]) -> None:
        """Counts the drafts of a step that the teacher has read."""
        for counter, lengths in (
            (self._verified, [draft.num_drafted for draft in drafts]),
            (self._accepted, [draft.num_accepted for draft in drafts]),
        ):
            # Once for a position, since each is a write to a file that other processes read.
            for position in range(1, max(lengths, default=0) + 1):
                counter.labels(position).inc(sum(length >= position for length in lengths))

    def count_drafts(self, drafts: Sequence[Sequence[int]], seconds: float) -> None:
        """Counts what one step drafted."""
        self.drafts.inc(len(drafts))
        self.drafted.inc(sum(map(len, drafts)))
        self.seconds.observe(seconds)

    def show_version(self, run: str, step: int) -> None:
        """Says which checkpoint drafts from now on."""
        if self._run not in (None, run):
            self._step.labels(self._run).set(0)
        self._run = run
        self._step.labels(run).set(step)
        self.swaps.inc()

    def show_quarantines(self, num_quarantines: int) -> None:
        """Brings the counter to what the registry has counted since the process began."""
        self._quarantines.inc(num_quarantines - self._num_quarantines)
        self._num_quarantines = num_quarantines


def publish(metrics: DrafterMetrics, port: int) -> None:
    """Serves them at a port of their own, where there is one; says in the log where they are to be found.

    Raises:
        OSError: the port is taken.
    """
    if port:
        start_http_server(port, registry=metrics.registry)
        logger.info("the drafter's metrics are at port %d", port)
    elif os.environ.get(_MULTIPROCESS):
        logger.info("the drafter's metrics are on vLLM's page /metrics")
    else:
        logger.warning(
            "nobody sees the drafter's metrics: set %s to an empty folder for vLLM's own page to show them, or "
            "LATENTFORGE_DRAFTER_METRICS_PORT to a port",
            _MULTIPROCESS,
        )
