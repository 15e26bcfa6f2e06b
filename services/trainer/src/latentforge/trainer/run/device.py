"""Where a run computes, and in which precision."""

import torch

from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.errors import TrainerError


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe asks for.

    Raises:
        TrainerError: cuda is asked for and there is none.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise TrainerError("device is 'cuda', but torch sees no CUDA device; set device to 'auto' or 'cpu'")
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(recipe.device)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
