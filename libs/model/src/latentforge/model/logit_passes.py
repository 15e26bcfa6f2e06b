"""The passes over a block of logits that its losses and gradient take, beside the products: in place, or fused.

Bytes that they move a logit, in bfloat16, products included: 54 in place; fused 12 by the same count, where a kernel
reads its block once, or 22 where induction heads add to the logits, which is done in float32. Fused they pay where
moving bytes is what a step waits for, on a GPU: in place a block is in a processor's cache.

Kernels of others are for less: Liger's and Apple's (cut cross-entropy) make the cross-entropy alone, or a divergence
from all of a teacher's logits, and none of them the sum over what a sparse row leaves out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LogitPasses(NamedTuple):
    """Two passes over logits ℓ [m, V] of which those of kept ids are NEVER.

    Attributes:
        tail: of the logits gives their maxima, float32 [m, 1], and Σ exp(ℓ - maximum), float32 [m].
        gradient: of the same logits, their maxima, factors [m] and a number format gives factor·exp(ℓ - maximum),
            [m, V], in memory that is written to.
        in_place: whether these write to the logits, which have to be in float32 then; else they may be in the product's
            format, and the gradient is in the one that is asked for.
    """

    tail: Callable[[Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
    in_place: bool


def _tail_in_place(logits: Tensor) -> tuple[Tensor, Tensor]:
    top = logits.amax(1, keepdim=True)
    return top, logits.sub_(top).exp_().sum(1)


def _gradient_in_place(exponentials: Tensor, top: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    # The first pass has left exp(ℓ - top) behind.
    return exponentials.mul_(factors[:, None])


def _tail(logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    top = logits.amax(1, keepdim=True)
    return top, (logits - top).exp().sum(1)


def _gradient(logits: Tensor, top: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    return ((logits.float() - top).exp() * factors[:, None]).to(dtype)


IN_PLACE = LogitPasses(_tail_in_place, _gradient_in_place, in_place=True)
#: what :func:`fused_passes` compiles; as it stands it makes tensors of all that it computes on the way
UNFUSED = LogitPasses(_tail, _gradient, in_place=False)


def fused_passes(*, varying: bool) -> LogitPasses:
    """A kernel for each pass, by torch.compile when it is first run; ``varying``: one for all numbers of tokens."""
    tail: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.compile(_tail, dynamic=varying)
    gradient: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor] = torch.compile(_gradient, dynamic=varying)
    return LogitPasses(tail, gradient, in_place=False)
