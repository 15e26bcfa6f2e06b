"""Linear layers that read the same input, as one product, without holding their weights twice."""

import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.decoding.tables import is_better_by_column
from latentforge.model.layers import SwiGLU

# Two threads must not make each other's memory that of the same weights.
_FUSING = threading.Lock()


def fused_weight(linears: Sequence[nn.Linear], *, by_column: bool = False) -> Tensor:
    """The weights of bias-free layers one below the other, float [sum of out_features, in_features].

    The layers' own weights become views of it: values, shapes and gradients stay, memory is held once, and whoever
    changes a weight in place changes the fused one with it. Layers that are fused already give the same memory again.

    Args:
        linears: layers that read the same input.
        by_column: store it as :func:`latentforge.model.decoding.tables.stored_by_column` says, where that helps.
    """
    weights = [linear.weight for linear in linears]
    with _FUSING:
        fused = _fused_already(weights)
        if fused is None or (by_column and is_better_by_column(fused) and fused.is_contiguous()):
            # Not in inference mode: whoever trains the model afterwards needs ordinary tensors.
            with torch.inference_mode(False), torch.no_grad():
                fused = torch.cat([weight.detach() for weight in weights])
                if by_column and is_better_by_column(fused):
                    fused = fused.T.contiguous().T
                for weight, rows in zip(weights, fused.split([len(weight) for weight in weights]), strict=True):
                    weight.data = rows
    return fused


def _fused_already(weights: Sequence[Tensor]) -> Tensor | None:
    """The memory that the weights lie in one below the other, row by row or column by column; None if they do not."""
    first, num_rows, size = weights[0], sum(len(weight) for weight in weights), weights[0].shape[1]
    for strides in ((size, 1), (1, num_rows)):
        place = first.data_ptr()
        for weight in weights:
            same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            if not same or weight.stride() != strides or weight.data_ptr() != place:
                break
            place += len(weight) * strides[0] * weight.element_size()
        else:
            return first.detach().as_strided((num_rows, size), strides)
    return None


class FusedSwiGLU:
    """``x + down(silu(gate(norm(x))) * up(norm(x)))`` with RMSNorm, gate and up as one product; x is [n, size]."""

    def __init__(
        self, norm: Tensor, eps: float, gate: nn.Linear, up: nn.Linear, down: nn.Linear, *, by_column: bool = False
    ) -> None:
        """Fuses gate and up in place (see :func:`fused_weight`); ``norm`` is the norm's weight."""
        self._norm, self._eps, self._shape = norm.detach(), eps, tuple(norm.shape)
        self._gate_up, self._down = fused_weight([gate, up], by_column=by_column), down.weight.detach().T

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = F.linear(F.rms_norm(x, self._shape, self._norm, self._eps), self._gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), self._down)


def fused_swiglu(block: SwiGLU, *, by_column: bool = False) -> FusedSwiGLU:
    """A block of ours, fused in place."""
    assert block.norm.eps is not None
    return FusedSwiGLU(block.norm.weight, block.norm.eps, block.gate, block.up, block.down, by_column=by_column)
