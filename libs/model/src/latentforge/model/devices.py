"""What results call the device that they were measured on."""

import torch

from latentforge.core.results import cpu_description


def device_description(device: torch.device) -> str:
    """A GPU's name, or the processor's with its cores."""
    return cpu_description() if device.type == "cpu" else torch.cuda.get_device_name(device)
