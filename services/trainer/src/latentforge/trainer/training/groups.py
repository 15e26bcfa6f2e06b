"""Groups of parameters with learning rates of their own, some frozen at first.

Layers that are pretrained and tables that are not want other rates, and a step of the former is of use only once what
feeds and reads them is no longer random.
"""

from typing import Any, NamedTuple

from torch import nn
from torch.optim import AdamW, Optimizer

from latentforge.trainer.config.sections import GroupName, GroupRecipe, OptimRecipe

_CHUNKS = {"chunk_up", "chunk_down", "chunk_norm", "input_map", "start"}
# The maps to what a table reads too: as large a step as of a fresh one would move all of a pretrained table's logits.
_OUTPUTS = {"output", "output_table", "output_map", "logit_features"}


class _Group(NamedTuple):
    """Which of an optimizer's ``param_groups`` it is, and how it learns."""

    optimizer: Optimizer
    place: int
    recipe: GroupRecipe

    @property
    def entry(self) -> dict[str, Any]:
        # Not kept: an optimizer that loads its state makes new ones.
        entry: dict[str, Any] = self.optimizer.param_groups[self.place]
        return entry


class ParameterGroups:
    """The groups of a recipe within optimizers that are built for a whole model; without any nothing changes."""

    def __init__(self, model: nn.Module, optimizers: list[Optimizer], recipe: OptimRecipe) -> None:
        """Divides the optimizers' parameters among their groups, in place; to be done before their first step."""
        self._warmup_steps = recipe.warmup_steps
        self._groups: list[_Group] = []
        if not recipe.groups:
            return
        group_of = {id(p): group_of_parameter(name) for name, p in model.named_parameters()}
        adamw = next(o for o in optimizers if isinstance(o, AdamW))
        entries = [(optimizer, entry) for optimizer in optimizers for entry in optimizer.param_groups]
        for optimizer in optimizers:
            optimizer.param_groups = []
        for optimizer, entry in entries:
            for name in dict.fromkeys(group_of[id(p)] for p in entry["params"]):
                group = recipe.groups.get(name, GroupRecipe())
                target, options = optimizer, {key: value for key, value in entry.items() if key != "params"}
                if group.optimizer == "adamw" and optimizer is not adamw:
                    # Decay is of the matrices; the rest that AdamW wants is not Muon's.
                    target, options = adamw, {"weight_decay": entry["weight_decay"]}
                target.add_param_group({**options, "params": [p for p in entry["params"] if group_of[id(p)] == name]})
                self._groups.append(_Group(target, len(target.param_groups) - 1, group))

    def drop_frozen(self, step: int) -> None:
        """Drops the gradients of groups that do not learn yet: they neither count in the step's norm nor move."""
        for group in self._groups:
            if step < group.recipe.frozen_steps:
                for parameter in group.entry["params"]:
                    parameter.grad = None

    def scale_rates(self, step: int) -> None:
        """Multiplies the rates that the schedule has set."""
        for group in self._groups:
            recipe, entry = group.recipe, group.entry
            # A group that was frozen has no momentum yet, as at the beginning of training.
            rise = (step - recipe.frozen_steps + 1) / (self._warmup_steps + 1) if recipe.frozen_steps else 1.0
            entry["lr"] *= recipe.rate * min(1.0, rise)


def freeze(model: nn.Module, recipe: OptimRecipe) -> None:
    """Takes groups that never learn, whose rate is 0, out of training: nothing of their gradients is computed."""
    for name, parameter in model.named_parameters():
        group = recipe.groups.get(group_of_parameter(name))
        if group is not None and group.rate == 0:
            parameter.requires_grad_(False)


def group_of_parameter(name: str) -> GroupName:
    """The group of a parameter of a student, a token-level student or an autoencoder."""
    parts = set(name.split("."))
    if "backbone" in parts:
        return "layers"
    if "embedding" in parts:
        return "inputs"
    if parts & _CHUNKS and "chunk_decoder" not in parts:
        return "chunks"
    if parts & _OUTPUTS:
        return "outputs"
    return "rest"
