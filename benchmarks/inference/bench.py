"""What every measurement is given, and what it gives."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.benchmark import Benchmark
from benchmarks.inference.plan import InferencePlan
from benchmarks.inference.servers import InferenceServer, InferenceServers


@dataclass(kw_only=True)
class InferenceBench(Benchmark):
    """One run of the benchmark.

    Attributes:
        plan: how much is measured.
        device: of the models in this process.
        threads: numbers of torch threads that each side may try.
        servers: starts them.
        scratch: a folder that is removed at the end.
    """

    plan: InferencePlan
    device: torch.device
    threads: tuple[int, ...]
    servers: InferenceServers
    scratch: Path
    _student: InferenceServer | None = None

    def student(self) -> InferenceServer:
        """The server of the shipped student; started when it is first asked for."""
        if self._student is None:
            self.report.begin("starting the server of the shipped student")
            self._student = self.servers.start_student(self.scratch / "no-checkpoints")
        return self._student
