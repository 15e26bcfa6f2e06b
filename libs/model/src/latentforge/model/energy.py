"""CALM's energy score of latents."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentforge.model.autoencoder import Posterior
from latentforge.model.noise import Noise, normal

_DRAWS_AT_ONCE = 16


def energy_loss(samples: Tensor, posterior: Posterior, draws: int = 100, noise: Noise = None) -> Tensor:
    """CALM's loss (arXiv 2510.27688): the energy score of the head's samples z~ against the posterior's z.

        2·E|z~ - z| - E|z~ - z~'|

    It is Székely's energy distance 2·E|X - Y| - E|X - X'| - E|Y - Y'| without its last term, which no student can
    change: least, in expectation, for samples of the posterior itself and nothing else (a strictly proper score,
    Gneiting and Raftery 2007). It needs samples alone, no density. The first term pulls them to the data, the second
    pushes them apart; the exponent of the distances is 1.

    Args:
        samples: the head's, float [s, n, D], s >= 2; pairs of a sample with itself are left out.
        posterior: of the true chunks, [n, D]; draws from it are the z and get no gradient.
        draws: how many z.
        noise: draws them.

    Returns:
        float32 [n].

    Raises:
        ValueError: there is only one sample.
    """
    s = samples.shape[0]
    if s < 2:
        raise ValueError(f"energy_loss wants at least 2 samples for each latent, got {s}; raise the number of samples")
    mean_distance: Callable[..., Tensor] = _MeanDistance.apply
    to_data = mean_distance(samples, posterior.mean, posterior.log_std.exp(), draws, noise)
    first, second = torch.triu_indices(s, s, offset=1, device=samples.device)
    between: Tensor = torch.linalg.vector_norm(samples[first] - samples[second], dim=-1).mean(0)
    return 2 * to_data - between


class _MeanDistance(torch.autograd.Function):
    """Mean distance of samples [s, n, D] to draws from a Gaussian, [n]; its gradient is made in the same pass.

    The plain broadcast of s·draws differences takes 13 GB for 4,096 chunks at D = 1024. Here the draws are made a few
    at a time, their distances by a matrix product, and of those only sums stay:

        ∂/∂a mean |a - z| = mean (a - z) / |a - z| = (a·Σ 1/|a - z| - Σ z/|a - z|) / count
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, mean: Tensor, std: Tensor, draws: int, noise: Noise) -> Tensor:
        # |a - z|² = |a|² + |z|² - 2·a·z cancels where both are long, so both are relative to the mean.
        a = (samples - mean).transpose(0, 1)
        a_square = a.square().sum(-1, keepdim=True)
        total = a.new_zeros(a.shape[0])
        weights = torch.zeros_like(a_square)
        pulled = torch.zeros_like(a)
        for first in range(0, draws, _DRAWS_AT_ONCE):
            num = min(_DRAWS_AT_ONCE, draws - first)
            shape = (a.shape[0], num, a.shape[2])
            z = std[:, None] * normal(shape, noise, dtype=a.dtype, device=a.device)
            distance = (
                torch.baddbmm(z.square().sum(-1)[:, None] + a_square, a, z.mT, alpha=-2).clamp_(min=1e-12).sqrt_()
            )
            total += distance.sum((1, 2))
            inverse = distance.reciprocal()
            weights += inverse.sum(-1, keepdim=True)
            pulled += inverse @ z
        count = draws * a.shape[1]
        ctx.save_for_backward(((a * weights - pulled) / count).transpose(0, 1))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (direction,) = ctx.saved_tensors
        return direction * grads[0][:, None], None, None, None, None
