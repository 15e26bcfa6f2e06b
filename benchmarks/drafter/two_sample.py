"""Whether two sets of sampled texts can be told apart: a permutation test that sees any difference in distribution."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Behind the end of a text; no token has it.
_ENDED = -1


def two_sample_p(
    ours: Sequence[Sequence[Sequence[int]]],
    theirs: Sequence[Sequence[Sequence[int]]],
    num_tokens: int,
    permutations: int,
    seed: int,
) -> float:
    """p of the hypothesis that for every prompt both sides' texts are draws from one distribution.

    The statistic is the squared maximum mean discrepancy (Gretton et al., "A Kernel Two-Sample Test", 2012), summed
    over prompts. Two texts are as alike as the share of positions at which their tokens are equal, plus that of
    positions up to which all are: the first sees each position's distribution, the second that of whole beginnings.
    Labels are permuted within a prompt, so that p is exact whatever the texts are like.

    Args:
        ours, theirs: for each prompt the ids of each sample.
        num_tokens: that are looked at; a shorter text has ended.
        permutations: at least 1 / p can be resolved.
        seed: of the permutations.
    """
    rng = np.random.default_rng(seed)
    totals = np.zeros(permutations + 1)
    for one, other in zip(ours, theirs, strict=True):
        alike_nn = _likeness([*one, *other], num_tokens)
        # ±weights whose quadratic form is the mean likeness within both sides, less that between them.
        signs = np.concatenate([np.full(len(one), 1 / len(one)), np.full(len(other), -1 / len(other))])
        labels_pn = np.stack([signs, *(rng.permutation(signs) for _ in range(permutations))])
        totals += np.einsum("pn,pn->p", labels_pn @ alike_nn, labels_pn)
    # Rounding makes equal sums unequal.
    at_least = np.count_nonzero(totals[1:] >= totals[0] - 1e-12)
    return float((1 + at_least) / (1 + permutations))


def _likeness(texts: Sequence[Sequence[int]], num_tokens: int) -> NDArray[np.float64]:
    """[n, n]: how alike each two texts are, 0 … 2."""
    padded = [[*ids[:num_tokens], *[_ENDED] * (num_tokens - len(ids))] for ids in texts]
    ids_nt = np.array(padded, np.int64)
    alike_nn = np.zeros((len(texts), len(texts)))
    so_far_nn = np.ones_like(alike_nn, dtype=np.bool_)
    for place in range(num_tokens):
        same_nn = ids_nt[:, None, place] == ids_nt[None, :, place]
        so_far_nn &= same_nn
        alike_nn += same_nn
        alike_nn += so_far_nn
    return alike_nn / num_tokens
