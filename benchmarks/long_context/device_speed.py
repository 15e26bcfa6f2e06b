"""How fast a device reads its memory and multiplies, as fast as simple operations of torch do it."""

import time
from collections.abc import Callable
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict

_TRIES = 3


class DeviceSpeed(BaseModel):
    """What a device does at most.

    Attributes:
        bytes_per_second: of memory that are read, or read and written, whichever it does more of.
        flops_per_second: of float32 products; a multiplication and its addition are two.
    """

    model_config = ConfigDict(frozen=True)

    bytes_per_second: float
    flops_per_second: float


def measured_speed(device: torch.device, num_bytes: int, product_size: int) -> DeviceSpeed:
    """Measures a device by a large copy, a large sum and a large product; the best of three tries each.

    Args:
        device: of the memory.
        num_bytes: of what is copied and summed up; more than the processor's caches hold.
        product_size: rows and columns of the matrices that are multiplied.
    """
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * num_bytes / _seconds(device, partial(target.copy_, source))
    read = num_bytes / _seconds(device, source.sum)
    del source, target
    square, product = torch.rand(product_size, product_size, device=device), torch.empty(0, device=device)
    multiplied = 2 * product_size**3 / _seconds(device, partial(torch.mm, square, square, out=product))
    return DeviceSpeed(bytes_per_second=max(copied, read), flops_per_second=multiplied)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of some tries, behind one that does not count."""
    taken = []
    for _ in range(1 + _TRIES):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
