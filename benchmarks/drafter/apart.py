"""What is measured in engines of its own, which end before the others start."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drafter import methods
from benchmarks.drafter.engines import VllmEngines
from benchmarks.drafter.measures import time_passes
from benchmarks.drafter.plan import DrafterPlan
from benchmarks.drafter.republishing import republished
from benchmarks.drafter.swaps import SwapFindings, SwapPublisher, swaps
from benchmarks.gateway.servers import Dtype
from benchmarks.progress import BenchProgress
from latentforge.core.checkpoints import list_checkpoints


@dataclass(frozen=True)
class Apart:
    """Starts them.

    Attributes:
        plan: how much is measured.
        ids: of the prompts.
        model: the teacher's folder; it computes in ``dtype``.
        logs: for what engines print.
        scratch: for their jobs, and checkpoints.
        progress: is told.
    """

    plan: DrafterPlan
    ids: Sequence[Sequence[int]]
    model: Path
    dtype: Dtype
    logs: Path
    scratch: Path
    progress: BenchProgress

    def passes_ms(self) -> dict[int, dict[int, float]]:
        """Milliseconds of a pass by requests at once and tokens of each."""
        with ExitStack() as stack:
            self.progress.begin("starting vLLM: fixed drafts, to time passes")
            engine = self._engines(stack).start(methods.fixed(self.plan))
            # Python: its texts do not end soon.
            longest = list(self.ids[-self.plan.at_once :])
            engine.write(longest, 8)
            found = {}
            for at_once in (1, min(self.plan.at_once, len(longest))):
                found[at_once] = time_passes(engine, longest, self.plan.passes, at_once)
                said = ", ".join(f"{tokens}: {took:.1f} ms" for tokens, took in found[at_once].items())
                self.progress.figure(f"passes by tokens, {at_once} at once: {said}")
        return found

    def swapped(self, student: Path) -> SwapFindings:
        """Checkpoints published under load, to the student of a run's folder.

        Raises:
            ValueError: it holds no checkpoint.
            TimeoutError: the last one is not taken.
        """
        published = list_checkpoints(student)
        if not published:
            raise ValueError(f"{student} holds no checkpoint, no step-*/manifest.json; swaps needs a run's folder")
        root, made = self.scratch / "swapped", self.scratch / "made"
        first = republished(published[-1], root, made)
        with ExitStack() as stack:
            engines = self._engines(stack)
            self.progress.begin("starting vLLM: alone and a student, to swap its checkpoints")
            alone = engines.start(methods.ALONE)
            engine = engines.start(methods.student("swapped", root, self.plan, self.scratch / "empty"))
            publisher = SwapPublisher(first, root, made, self.plan.checkpoints)
            ids = self.ids[: self.plan.at_once]
            found = swaps(engine, alone, ids, self.plan.new_tokens, publisher, self.dtype)
        self.progress.figure(f"swaps: {found.wrong} of {found.texts} texts wrong, bad ones used: {found.bad_used}")
        return found

    def _engines(self, stack: ExitStack) -> VllmEngines:
        return VllmEngines(stack, self.model, self.dtype, self.plan, self.logs, self.scratch)
