"""Linear layers that read the same input, as one product, without holding their weights twice."""

import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Two threads must not make each other's memory that of the same weights.
_FUSING = threading.Lock()


def fused_weight(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights of bias-free layers one below the other, float [sum of out_features, in_features].

    The layers' own weights become views of it: values, shapes and gradients stay, memory is held once, and whoever
    changes a weight in place changes the fused one with it. Layers that are fused already give the same memory again.
    """
    weights = [linear.weight for linear in linears]
    with _FUSING:
        if not _lie_behind_each_other(weights):
            # Not in inference mode: whoever trains the model afterwards needs ordinary tensors.
            with torch.inference_mode(False), torch.no_grad():
                fused = torch.cat([weight.detach() for weight in weights])
                for weight, rows in zip(weights, fused.split([len(weight) for weight in weights]), strict=True):
                    weight.data = rows
    num_rows, size = sum(len(weight) for weight in weights), weights[0].shape[1]
    return weights[0].detach().as_strided((num_rows, size), (size, 1))


def _lie_behind_each_other(weights: Sequence[Tensor]) -> bool:
    storage, place = weights[0].untyped_storage().data_ptr(), weights[0].data_ptr()
    for weight in weights:
        if not weight.is_contiguous() or weight.untyped_storage().data_ptr() != storage or weight.data_ptr() != place:
            return False
        place += weight.nbytes
    return True


class FusedSwiGLU:
    """``x + down(silu(gate(norm(x))) * up(norm(x)))`` with RMSNorm, gate and up as one product; x is [n, size]."""

    def __init__(self, norm: Tensor, eps: float, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        """Fuses gate and up in place; ``norm`` is the norm's weight."""
        self._norm, self._eps, self._shape = norm.detach(), eps, tuple(norm.shape)
        self._gate_up, self._down = fused_weight([gate, up]), down.weight.detach().T

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = F.linear(F.rms_norm(x, self._shape, self._norm, self._eps), self._gate_up).chunk(2, -1)
        return torch.addmm(x, F.silu(gate).mul_(up), self._down)
