"""What both training loops do with a loss: schedule, gradient, guard, step."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentforge.model.optim import build_optimizers, load_state_tensors, set_learning_rate, state_tensors
from latentforge.model.sharded import whole
from latentforge.trainer.config.sections import OptimRecipe
from latentforge.trainer.run.ranks import ALONE, Ranks, peers_needed
from latentforge.trainer.training.averages import WeightAverage
from latentforge.trainer.training.groups import ParameterGroups
from latentforge.trainer.training.rewinds import BrokenLossError

_TOTAL = ""
# Before the names of averages, where the optimizers' tensors begin with a number.
_AVERAGE = "ema."

# A part's share of the loss, and what that is made of by name, scalars.
MicroLoss = tuple[Tensor, Mapping[str, Tensor]]


def learning_rate(step: int, recipe: OptimRecipe) -> float:
    """The rate of step ``step``: a linear rise, the peak, a fall that reaches 0 after the last step."""
    # Step 0 learns too: a rate of 0 would waste it.
    rise = (step + 1) / (recipe.warmup_steps + 1)
    begin = recipe.decay_from * recipe.steps
    left = min(1.0, (recipe.steps - step) / (recipe.steps - begin))
    if recipe.decay == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return recipe.lr * min(1.0, rise, left)


class Optimisation:
    """The optimizers of one model under one schedule.

    Args:
        model: what this process trains, perhaps with others.
        recipe: rates and schedule.
        ranks: the processes that train it.
        ema: decay of an average of the weights over the steps; None keeps none.

    Attributes:
        average: that one.
    """

    def __init__(
        self, model: nn.Module, recipe: OptimRecipe, ranks: Ranks = ALONE, *, ema: float | None = None
    ) -> None:
        self._recipe, self._ranks = recipe, ranks
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizers: list[Optimizer] = build_optimizers(
            model,
            recipe.lr,
            recipe.weight_decay,
            split=recipe.muon_split,
            muon_dtype=recipe.muon_dtype,
        )
        self._groups = ParameterGroups(model, self._optimizers, recipe)
        self.average = None if ema is None else WeightAverage(model, ema)

    def step(self, step: int, losses: Iterable[MicroLoss]) -> dict[str, float]:
        """Backpropagates the losses, each before the next one is asked for, and makes one optimizer step of their sum.

        Args:
            step: the step's number, for the schedule.
            losses: of the batch's parts.

        Returns:
            The sums of the terms as numbers, with the gradient's norm before clipping and the learning rate.

        Raises:
            BrokenLossError: loss or gradient is not finite; the model is left as it was before the step.
        """
        sums: dict[str, Tensor] = {}
        for loss, terms in losses:
            for name, term in ({_TOTAL: loss} | dict(terms)).items():
                sums[name] = term.detach() + sums[name] if name in sums else term.detach()
            with peers_needed():
                loss.backward()
        # Numbers only now: on a GPU each of them waits for all that was asked of it.
        summed = self._ranks.sum(torch.stack(list(sums.values()))).tolist()
        values = dict(zip(sums, summed, strict=True))
        total = values.pop(_TOTAL)
        self._groups.drop_frozen(step)
        with peers_needed():
            norm = float(whole(nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_norm)))
        for what, value in (("loss", total), ("gradient", norm)):
            if not math.isfinite(value):
                self._zero_grad()
                raise BrokenLossError(_not_finite(step, what, values))
        lr = learning_rate(step, self._recipe)
        set_learning_rate(self._optimizers, lr)
        self._groups.scale_rates(step)
        for optimizer in self._optimizers:
            with peers_needed():
                optimizer.step()
        if self.average is not None:
            self.average.update()
        self._zero_grad()
        return values | {"grad_norm": norm, "lr": lr}

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """The optimizers' state and the averages, whole; all processes have to ask for it."""
        with peers_needed():
            averages = {} if self.average is None else self.average.state()
            tensors = state_tensors(self._optimizers) | {f"{_AVERAGE}{name}": value for name, value in averages.items()}
            return {name: whole(value) for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores what :meth:`state` gave.

        Raises:
            ValueError: it is of another model.
        """
        averages = {name: value for name, value in tensors.items() if name.startswith(_AVERAGE)}
        load_state_tensors(self._optimizers, {name: value for name, value in tensors.items() if name not in averages})
        if self.average is not None:
            self.average.load_state({name.removeprefix(_AVERAGE): value for name, value in averages.items()})


def _not_finite(step: int, what: str, parts: Mapping[str, float]) -> str:
    described = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
    return (
        f"step {step}: the {what} is not finite ({described}); nothing was changed by this step. "
        "Lower optim.lr and start anew with --fresh or --run NAME"
    )
