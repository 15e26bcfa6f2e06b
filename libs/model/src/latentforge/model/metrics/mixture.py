"""Likelihood of a student that samples its latents: the importance-weighted mixture bound.

    p(x_k | x_<k, h) = Σ_n w_n(k) · p_dec(x_k | z_n),     w_n(k) ∝ Π_{j<k} p_dec(x_j | z_n)     (j, k inside the chunk)

Burda et al., Importance Weighted Autoencoders, arXiv 1509.00519, with the prior as its own proposal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mixture_log_likelihood(log_probs: Tensor) -> Tensor:
    """log p(x_k | x_<k, h) under a mixture over N latents, float64 [n_chunks, K], in nats.

    The sum over k is the chunk's ``log (1/N) Σ_n Π_k p_dec(x_k | z_n)``. In expectation over the latents that sum, and
    that over the first k tokens, is at most the true log likelihood, and rises towards it with N; a single token's
    value is a difference of two such bounds and none itself. A token that no latent allows, and all after it, get -inf.

    Args:
        log_probs: float [N, n_chunks, K], log p_dec(x_k | z_n) of the true token k under latent n, drawn from the
            student's head for the chunk.

    Raises:
        ValueError: N is 0, or values that are no log probabilities (NaN or above 0).
    """
    num = log_probs.shape[0]
    if num < 1:
        raise ValueError("log_probs must hold at least 1 latent for each chunk, got 0; draw more")
    if log_probs.isnan().any() or (log_probs > 1e-3).any():
        raise ValueError("log_probs must be log probabilities (not NaN, at most 0); check the sign and the log_softmax")
    joint = log_probs.double().cumsum(-1).logsumexp(0)
    before = torch.cat((torch.full_like(joint[:, :1], num).log(), joint[:, :-1]), -1)
    return torch.where(joint.isneginf(), joint, joint - before)


def nested_mixture(log_probs: Tensor, sizes: Sequence[int] = (1, 8, 32, 128)) -> dict[int, Tensor]:
    """`mixture_log_likelihood` at several N from the same draws: ``{N: float64 [n_chunks, K]}``, in nats.

    Where N is less than the number of draws, disjoint groups of N are averaged (in log, so that it stays the bound at
    N, with less variance); draws that fill no group are left out.

    Args:
        log_probs: float [draws, n_chunks, K], as of `mixture_log_likelihood`.
        sizes: the N, each at most the number of draws.

    Raises:
        ValueError: an N that is not between 1 and the number of draws, or values that are no log probabilities.
    """
    draws, chunks, k = log_probs.shape
    wrong = [size for size in sizes if not 1 <= size <= draws]
    if wrong:
        raise ValueError(
            f"sizes must be between 1 and the {draws} draws, got {wrong}; draw more latents or ask for less"
        )
    bounds = {}
    for size in sizes:
        groups = draws // size
        grouped = log_probs[: groups * size].reshape(groups, size, chunks, k).transpose(0, 1).flatten(1, 2)
        bounds[size] = mixture_log_likelihood(grouped).reshape(groups, chunks, k).mean(0)
    return bounds
