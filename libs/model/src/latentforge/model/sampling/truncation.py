"""Which tokens top_p and min_p keep, and a draw from them that sorts nothing.

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

from latentforge.model.sampling.inversion import Inversion
from latentforge.model.sampling.text import TextSampling

# Sums of float32 are trusted this far, as a share of the whole; nearer to a bound, it is looked up in float64.
_TRUSTED = 1e-5
# Each try leaves half as much to refuse, in the mean. What needs more is sorted.
_MOST_TRIES = 24


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


def draw_kept(text: TextSampling, mass: Tensor, token: int, total: float, peak: float) -> int:
    """``token`` if truncation keeps it, else another that it keeps.

    Args:
        text: whose random numbers are used.
        mass: float32 [V], on a CPU.
        token: drawn from all of it.
        total: of the mass.
        peak: the greatest of the mass.
    """
    top_p, least = text.params.top_p, text.params.min_p * peak
    target, near = top_p * total, _TRUSTED * total
    left = mass
    for _ in range(_MOST_TRIES):
        own = float(mass[token])
        if own < least:
            left = F.threshold(left, _below(least), 0.0)
        else:
            # Most tokens are settled by this: what is left beside a likely one cannot reach top_p.
            if top_p == 1 or own > total - target + near:
                return token
            if float(F.threshold(left, _below(own), 0.0).sum()) - own < target - near:
                return token
            left = F.threshold(left, own, 0.0)
            if float(left.sum()) <= target + near:
                # Ties, or sums so near to top_p that their rounding decides.
                break
        token = int(Inversion(left[None]).find(_uniform(text)))
    return _draw_sorted(text, mass, token)


def _draw_sorted(text: TextSampling, mass: Tensor, token: int) -> int:
    """The same by sorting."""
    ordered, ids = mass.sort(descending=True, stable=True)
    bounds = torch.tensor([text.params.top_p, text.params.min_p], dtype=torch.float64)[:, None, None]
    kept = kept_of_sorted(ordered[None], bounds[0], bounds[1])
    if kept[0, ids == token].all():
        return token
    return int(ids[Inversion(ordered * kept).find(_uniform(text))])


def _below(value: float) -> float:
    """The greatest float32 below a value from 0."""
    single = np.float32(value)
    return float(single if single < value else np.nextafter(single, np.float32(-1)))


def _uniform(text: TextSampling) -> Tensor:
    return torch.tensor([[text.uniforms.take()]], dtype=torch.float64)
