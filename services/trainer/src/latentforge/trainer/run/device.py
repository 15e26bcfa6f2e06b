"""Where a run computes, and in which precision."""

import torch

from latentforge.core.devices import choose_device
from latentforge.trainer.config.recipe import Recipe


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe asks for.

    Raises:
        SettingsError: there is no such device.
    """
    return torch.device(choose_device("device", recipe.device, torch.cuda.device_count()))


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")


def use_tf32(recipe: Recipe, device: torch.device) -> None:
    """Sets for the whole process what CUDA multiplies float32 numbers in."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if recipe.tf32 else "highest")
