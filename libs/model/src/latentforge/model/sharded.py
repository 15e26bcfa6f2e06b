"""Tensors that several processes hold in pieces, FSDP2's DTensors: whole, and back to pieces.

What is not in pieces passes through as it is.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one; all processes that hold pieces have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def piece_like(value: Tensor, other: Tensor) -> Tensor:
    """This process's piece of a whole value that every process has, cut as ``other`` is if that has its shape."""
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
