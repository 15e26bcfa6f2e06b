"""Output layer and token losses in one, without logits of the whole batch.

Logits are made for some rows at a time, turned into their own gradient in place while they are still in the processor's
cache, and dropped. Memory does not grow with tokens × vocabulary, and on a CPU it is much faster than autograd.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.sparse_kd import NEVER, Buckets, bucket_losses

_LOGITS_AT_ONCE_CPU = 2**20
_LOGITS_AT_ONCE_GPU = 2**27


class TokenLosses(NamedTuple):
    """``total`` = Σ_n ce_weights·ce + kd_weights·kd, a scalar with a gradient; ``ce``, ``kd`` [n] in nats, without."""

    total: Tensor
    ce: Tensor
    kd: Tensor


class OutputLayer(NamedTuple):
    """An output layer and what it reads: logits are ``inputs @ weight.T + bias``.

    Attributes:
        inputs: float [n, w].
        weight: float [V, w].
        bias: float [V].
        num_fixed: leading columns of the weight that get no gradient.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor
    num_fixed: int = 0


def token_losses(layer: OutputLayer, buckets: Buckets, ce_weights: Tensor, kd_weights: Tensor) -> TokenLosses:
    """Losses of an output layer's logits [n, V], weighted and summed; differentiable in all of its tensors.

    Args:
        layer: the output layer and its inputs.
        buckets: the teacher's rows; its last kept id is the realised token.
        ce_weights: float32 [n].
        kd_weights: float32 [n]; 0 where there is no row.
    """
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _TokenLosses.apply
    return TokenLosses(*run(*layer, *buckets, ce_weights, kd_weights, torch.is_grad_enabled()))


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        num_fixed: int,
        kept_ids: Tensor,
        kept: Tensor,
        teacher: Tensor,
        ce_weights: Tensor,
        kd_weights: Tensor,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, vocab_size = inputs.shape[0], weight.shape[0]
        ce, kd = ce_weights.new_empty(n), ce_weights.new_empty(n)
        input_grad = torch.empty_like(inputs) if with_grad else None
        learned_grad, bias_grad = torch.zeros_like(weight[:, num_fixed:]), torch.zeros_like(bias)
        budget = _LOGITS_AT_ONCE_CPU if inputs.device.type == "cpu" else _LOGITS_AT_ONCE_GPU
        step = max(32, budget // vocab_size)
        for first in range(0, n, step):
            part = slice(first, first + step)
            ids = kept_ids[part]
            block = Buckets(ids, kept[part], teacher[part])
            x = inputs[part]
            logits = torch.addmm(bias, x, weight.T).float()
            kept_logits = logits.gather(1, ids)
            logits.scatter_(1, ids, NEVER)
            top = logits.amax(1, keepdim=True)
            # From here on the buffer holds exp(logit - top) of the tail and 0 for kept tokens.
            buffer = logits.sub_(top).exp_()
            tail_sum = buffer.sum(1)
            tail_lse = top[:, 0] + tail_sum.log()
            ce[part], kd[part], lse = bucket_losses(block, kept_logits, tail_lse)
            if input_grad is None:
                continue
            ce_w, kd_w = ce_weights[part], kd_weights[part]
            both = ce_w + kd_w
            buffer.mul_((both * (top[:, 0] - lse).exp() - kd_w * block.teacher[:, -1] / tail_sum)[:, None])
            kept_grad = both[:, None] * (kept_logits - lse[:, None]).exp() - kd_w[:, None] * block.teacher[:, :-1]
            kept_grad = kept_grad * block.kept
            kept_grad[:, -1] -= ce_w
            # Where every token is kept there is no tail, and its coefficient multiplied numbers that mean nothing.
            buffer.scatter_(1, ids, 0).scatter_add_(1, ids, kept_grad)
            gradient = buffer.to(x.dtype)
            torch.mm(gradient, weight, out=input_grad[part])
            learned_grad.addmm_(gradient.T, x[:, num_fixed:])
            bias_grad += gradient.sum(0)
        if input_grad is not None:
            ctx.save_for_backward(input_grad, F.pad(learned_grad, (num_fixed, 0)), bias_grad)
        total = (ce_weights * ce + kd_weights * kd).sum()
        ctx.mark_non_differentiable(ce, kd)
        return total, ce, kd

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grads[0] for gradient in ctx.saved_tensors), *[None] * 7
