"""What every measurement of training is given, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.benchmark import Benchmark
from latentforge.core.results import Result


class BenchError(RuntimeError):
    """A figure that cannot be had here, and why; the other figures are measured all the same."""


@dataclass(kw_only=True)
class TrainerBench(Benchmark):
    """One run of the benchmark.

    Attributes:
        quick: a look whether everything works: seconds each, and no figure worth knowing.
        device: that models are trained on.
        scratch: a folder that is removed at the end.
        steps: optimizer steps of a figure of speed.
        seed: of weights, data and noise.
        stream_gb: gigabytes (10^9 bytes) of text that are packed.
    """

    quick: bool
    device: torch.device
    scratch: Path
    steps: int
    seed: int = 0
    stream_gb: float = 5.0

    @property
    def recipe(self) -> str:
        """Which recipe is measured."""
        return "smoke" if self.quick else "demo"


@dataclass(frozen=True)
class Measurement:
    """What gives one result, the first one of the id that it is registered under, and perhaps others beside it.

    Attributes:
        measure: its docstring says in the results file how it is measured.
        at_least, at_most: bars by the results' ids: of the ratio where there is a baseline, else of the value.
        figures: how many it reports for each repeat, for the progress.
    """

    measure: Callable[[TrainerBench], Sequence[Result]]
    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    figures: int = 1
