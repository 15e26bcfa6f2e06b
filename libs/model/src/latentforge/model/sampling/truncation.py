"""Which tokens top_p and min_p keep, and how to draw from them without sorting anything.

Tokens are in order of their probability, of equally likely ones lower ids first. top_p keeps a token where those before
it have less than that share of the mass, and min_p where it has at least that share of the likeliest one's. Both keep
the first ones of that order, and whether a token is among them can be asked of that token alone: it is drawn from all,
and drawn again where it is not kept. What is less likely than a refused token is refused as well, so every try leaves
less to draw from. What comes out is distributed exactly like a draw from what is kept.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.sampling.params import SamplingParams

# Each try leaves half as much to refuse, in the mean. What needs more is sorted.
_MOST_TRIES = 24
# Sums of float32 are trusted this far, as a share of the whole; nearer to a bound, it is looked up in float64.
_TRUSTED = 1e-5


def kept_of_sorted(mass: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which entries of mass [b, n], greatest first, are kept: bool [b, n], and always the first.

    Args:
        mass: float32, unnormalised; what top_k refused is 0.
        top_p, min_p: float64 [b, 1].
    """
    ends = mass.cumsum(-1, dtype=torch.float64)
    before = ends.roll(1, -1)
    before[:, 0] = 0
    return (before < top_p * ends[:, -1:]) & (mass >= min_p * mass[:, :1])


def left_beside(
    token: int, params: SamplingParams, mass: Tensor, left: Tensor, total: float, peak: float, tries: int
) -> Tensor | None:
    """None if truncation keeps a token; else what is left to draw from, float32 [V], which has all that is kept.

    Args:
        token: drawn from ``left``.
        params: its truncation.
        mass: float32 [V], unnormalised, on a CPU.
        left: the mass without tokens that were refused.
        total: of the mass.
        peak: the greatest of the mass.
        tries: tokens that were refused before.
    """
    own, least = mass[token].item(), params.min_p * peak
    if tries >= _MOST_TRIES:
        return _unless_kept(token, params, mass)
    if own < least:
        return F.threshold(left, _below(least), 0.0)
    # Most tokens are settled by this: what is left beside a likely one cannot reach top_p.
    target, near = params.top_p * total, _TRUSTED * total
    if params.top_p == 1 or own > total - target + near:
        return None
    if F.threshold(left, _below(own), 0.0).sum().item() - own < target - near:
        return None
    likelier = F.threshold(left, own, 0.0)
    if likelier.sum().item() > target + near:
        return likelier
    # Ties, or sums so near to top_p that their rounding decides.
    return _unless_kept(token, params, mass)


def _unless_kept(token: int, params: SamplingParams, mass: Tensor) -> Tensor | None:
    """The same by sorting: what is left is what is kept."""
    ordered, ids = mass.sort(descending=True, stable=True)
    bounds = torch.tensor([[params.top_p], [params.min_p]], dtype=torch.float64)
    kept = kept_of_sorted(ordered[None], bounds[:1], bounds[1:])[0]
    if kept[ids == token].all():
        return None
    return torch.zeros_like(mass).scatter_(0, ids, ordered * kept)


def _below(value: float) -> float:
    """The greatest float32 below a value from 0."""
    single = np.float32(value)
    return float(single if single < value else np.nextafter(single, np.float32(-1)))
