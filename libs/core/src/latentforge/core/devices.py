"""Where models compute: the names that settings and recipes take, and what they mean on a machine. No torch here."""

import re
from typing import Annotated

from pydantic import AfterValidator

from latentforge.core.settings import SettingsError

_CUDA = re.compile(r"cuda(?::(\d+))?")


def _known(name: str) -> str:
    if name not in ("auto", "cpu") and not _CUDA.fullmatch(name):
        raise ValueError("use auto, cpu, cuda or cuda:N")
    return name


DeviceName = Annotated[str, AfterValidator(_known)]


def choose_device(setting: str, name: str, num_cuda_devices: int) -> str:
    """What ``torch.device`` takes.

    Args:
        setting: that says so, for the error.
        name: a DeviceName; auto takes the first CUDA device where there is one.
        num_cuda_devices: ``torch.cuda.device_count()``.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "auto":
        return "cuda" if num_cuda_devices else "cpu"
    asked = _CUDA.fullmatch(name)
    if asked and int(asked[1] or 0) >= num_cuda_devices:
        there = f"{num_cuda_devices}, from cuda:0 on" if num_cuda_devices else "none"
        raise SettingsError(f"{setting} is {name!r}, but of CUDA devices torch finds {there}; use auto or cpu")
    return name
