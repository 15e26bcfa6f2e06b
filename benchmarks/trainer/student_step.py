"""A student's optimizer step in its two parts, forward and backward pass and the optimizer, counted and timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from benchmarks.trainer.models import random_batch, random_student
from benchmarks.trainer.operations import OperationCounter, without_computing
from latentforge.model.losses import ObjectiveWeights, loss_of
from latentforge.model.optim import build_optimizers
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.run.device import autocast


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
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self.model = random_student(recipe, device)
        self._batch = random_batch(recipe, recipe.student.optim.batch_size, device)
        self._weights = ObjectiveWeights(**recipe.student.weights.model_dump())
        self._optimizers: list[Optimizer] = build_optimizers(self.model, recipe.student.optim.lr)

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return self._batch.tokens.numel()

    def passes(self) -> None:
        """Forward and backward."""
        with autocast(self._recipe, self._device):
            loss = loss_of(self.model, self._batch, self._weights, torch.Generator(self._device))
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
    """Operations of a step, in bfloat16 ones (:data:`~benchmarks.trainer.operations.COSTS`); computes nothing."""
    with without_computing():
        step = StudentStep(recipe, torch.device("cpu"))
        with OperationCounter() as passes:
            step.passes()
        with OperationCounter() as optimizer:
            step.update()
    return StepParts(passes.cost, optimizer.cost)
