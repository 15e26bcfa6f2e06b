"""A student's optimizer step in its two parts, forward and backward pass and the optimizer, counted and timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from benchmarks.trainer.models import random_batch, random_student
from benchmarks.trainer.operations import OperationCounter, without_computing
from latentforge.model.config import MuonDtype
from latentforge.model.losses import LossCounts, ObjectiveWeights, loss_of
from latentforge.model.optim import build_optimizers
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.run.device import autocast
from latentforge.trainer.training.micro_batches import micro_batches


@dataclass(frozen=True)
class StepParts:
    """What a step takes, in one unit: its passes forward and backward, and its optimizer."""

    passes: float
    optimizer: float

    @property
    def optimizer_share(self) -> float:
        return self.optimizer / (self.passes + self.optimizer)


class StudentStep:
    """A recipe's student, a batch of random ids, and what a step does with them.

    Args:
        recipe: decides sizes and number formats.
        device: where it is.
        muon_dtype: instead of the recipe's.
    """

    def __init__(self, recipe: Recipe, device: torch.device, muon_dtype: MuonDtype | None = None) -> None:
        self._recipe, self._device, student = recipe, device, recipe.student
        self.model = random_student(recipe, device)
        if student.activation_checkpointing:
            assert self.model.student.backbone is not None
            self.model.student.backbone.activation_checkpointing_enable()
        self._batch = random_batch(recipe, student.optim.batch_size, device)
        self._weights = ObjectiveWeights(**student.weights.model_dump())
        self._optimizers: list[Optimizer] = build_optimizers(
            self.model,
            student.optim.lr,
            split=student.optim.muon_split,
            muon_dtype=muon_dtype or student.optim.muon_dtype,
        )

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return self._batch.tokens.numel()

    def passes(self) -> None:
        """Forward and backward."""
        counts = LossCounts.of(self._batch, self.model.chunk_size)
        for part in micro_batches(len(self._batch.tokens), self._recipe.student.optim.gradient_accumulation_steps):
            generator = torch.Generator(self._device)
            with autocast(self._recipe, self._device):
                loss = loss_of(self.model, self._batch.rows(part), self._weights, generator, counts)
            loss.total.backward()

    def update(self) -> None:
        """The optimizer's part."""
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def timed(self) -> StepParts:
        """Makes one step; wall-clock seconds."""
        return StepParts(self._seconds(self.passes), self._seconds(self.update))

    def _seconds(self, do: Callable[[], None]) -> float:
        started = time.perf_counter()
        do()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def counted(recipe: Recipe) -> StepParts:
    """Operations of a step on CUDA, in bfloat16 ones, see :data:`~benchmarks.trainer.operations.COSTS`."""
    with without_computing():
        step = StudentStep(recipe, torch.device("cpu"), muon_dtype="bfloat16")
        with OperationCounter() as passes:
            step.passes()
        with OperationCounter() as optimizer:
            step.update()
    return StepParts(passes.cost, optimizer.cost)
