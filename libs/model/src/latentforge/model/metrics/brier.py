"""Brier-n and BrierLM (CALM, arXiv 2510.27688): quality of a language model from its samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentforge.model.metrics.intervals import cluster_bootstrap

_NUM_FACTORS = 4


@dataclass(frozen=True)
class BrierScore:
    """BrierLM (``value``, 0 to 100, more is better) with its interval at 95 %, and what it is made of.

    ``brier_n[n - 1]`` is Brier-n (at most 1) for n = 1 … n_max; ``brier_8`` is None where n_max < 8.
    """

    value: float
    low: float
    high: float
    brier_n: tuple[float, ...]
    brier_8: float | None


def brier_values(samples: Tensor, targets: Tensor) -> Tensor:
    """Unbiased estimates of Brier-n at each position, float64 [n_positions, n_max]; column n - 1 is Brier-n.

    Brier's score of a prediction p for an outcome y, Σ_x (p(x) - 1{x = y})², is 1 - (2·p(y) - Σ p²). The mean of the
    bracket over y from q, 2·Σ p·q - Σ p², is greatest at p = q, and both of its sums are probabilities that n-grams
    coincide. So samples do, where nobody knows p:

        E[1{x1 = y} + 1{x2 = y} - 1{x1 = x2}]        x1, x2 drawn from p independently, y from q

    CALM's reference takes one pair of samples; here it is the mean over all ordered pairs of the m samples. The first
    two terms are then 2·hits / m; a group of s equal n-grams has s·(s - 1) pairs that coincide, of m·(m - 1). Groups
    are counted and no pair is made: memory is O(m·n_positions).

    Args:
        samples: int64 [m, n_positions, n_max], m >= 2 continuations of each position's prefix, drawn independently.
        targets: int64 [n_positions, n_max], the text's own continuations.

    Raises:
        ValueError: one sample only, or a negative id (a mark for padding is no token).
    """
    num, positions, n_max = samples.shape
    assert targets.shape == (positions, n_max), (targets.shape, samples.shape)
    if num < 2:
        raise ValueError(f"samples must hold at least 2 continuations of each prefix, got {num}; draw more")
    if positions and min(samples.min(), targets.min()) < 0:
        raise ValueError("samples and targets must be token ids >= 0; leave out positions whose n-gram is not whole")
    ids, tokens = torch.unique(samples, return_inverse=True)
    group = torch.arange(positions, device=samples.device).expand(num, positions)
    hit = torch.ones_like(group, dtype=torch.bool)
    values = torch.empty(positions, n_max, dtype=torch.float64, device=samples.device)
    for i in range(n_max):
        # A group is a position and an n-gram; it is split by the next token. Summed over its s samples, s - 1 gives its
        # s·(s - 1) pairs.
        _, group, sizes = torch.unique(group * len(ids) + tokens[..., i], return_inverse=True, return_counts=True)
        hit &= samples[..., i] == targets[:, i]
        same = (sizes[group] - 1).sum(0).double() / (num * (num - 1))
        values[:, i] = 2 * hit.double().mean(0) - same
    return values


def brier_values_of_logprobs(samples: Tensor, targets: Tensor) -> Tensor:
    """Unbiased estimates of the same Brier-n where samples and targets have log probabilities; far less noisy.

    Of ``2·Σ p·q - Σ p²`` the first sum is the mean of p over targets, and the second that of p over p's own samples, so
    that nothing needs to come twice: ``2·p(y) - p(x)``, averaged over the m samples.

    Args:
        samples: each token's log probability behind those before it, float [m, n_positions, n_max], m >= 1, of
            continuations of each position's prefix that the model drew independently.
        targets: likewise of the text's own continuations, float [n_positions, n_max].

    Returns:
        float64 [n_positions, n_max]; column n - 1 is Brier-n.
    """
    assert targets.shape == samples.shape[1:], (targets.shape, samples.shape)
    return 2 * targets.double().cumsum(-1).exp() - samples.double().cumsum(-1).exp().mean(0)


def brier_score(
    values: Tensor,
    phases: Tensor,
    clusters: Tensor,
    *,
    num_phases: int,
    resamples: int = 1000,
    seed: int = 0,
) -> BrierScore:
    """BrierLM = 100·(Brier-1 · Brier-2 · Brier-3 · Brier-4)^¼ over positions whose phases weigh the same.

    A phase is where in a chunk the n-gram starts. Each Brier-n is first averaged within a phase, then over the phases.
    Where one of the four is not above 0 (the estimates are unbiased, so that of a bad model or a small sample can be),
    BrierLM is 0: the root would not exist, or two negative factors would look like a good model. The interval redraws
    clusters (`cluster_bootstrap`), and a resample without any position of a phase averages over the others.

    Args:
        values: float64 [n_positions, n_max >= 4], of `brier_values` or `brier_values_of_logprobs`; batches can be
            concatenated.
        phases: int64 [n_positions], 0 <= phase < num_phases.
        clusters: int64 [n_positions], any id of the position's document or sequence.
        num_phases: K of a chunk model, 1 of a token-level one; each must have a position.
        resamples: of the interval.
        seed: of the interval.

    Raises:
        ValueError: n_max < 4, a phase out of range or without positions, or fewer than 2 clusters.
    """
    positions, n_max = values.shape
    assert phases.shape == clusters.shape == (positions,), (phases.shape, clusters.shape, values.shape)
    if n_max < _NUM_FACTORS:
        raise ValueError(
            f"BrierLM wants continuations of at least {_NUM_FACTORS} tokens, got {n_max}; sample more tokens"
        )
    found = torch.unique(phases).tolist()
    if found != list(range(num_phases)):
        raise ValueError(f"phases must be each of 0 … {num_phases - 1}, got {found}; start prefixes at every phase")
    documents, cluster = torch.unique(clusters, return_inverse=True)
    cell = cluster * num_phases + phases
    cells = len(documents) * num_phases
    sums = values.new_zeros(cells, n_max, dtype=torch.float64).index_add_(0, cell, values.double())
    counts = torch.bincount(cell, minlength=cells).double()
    sums, counts = sums.reshape(-1, num_phases, n_max), counts.reshape(-1, num_phases, 1)
    brier_n: list[float] = (sums.sum(0) / counts.sum(0)).mean(0).tolist()
    low, high = cluster_bootstrap(
        sums, counts, lambda by_phase: _brier_lm(by_phase.nanmean(1)), resamples=resamples, seed=seed
    )
    return BrierScore(
        value=_brier_lm(torch.tensor(brier_n, dtype=torch.float64)).item(),
        low=low,
        high=high,
        brier_n=tuple(brier_n),
        brier_8=brier_n[7] if n_max >= 8 else None,
    )


def _brier_lm(brier_n: Tensor) -> Tensor:
    return 100 * brier_n[..., :_NUM_FACTORS].clamp_min(0).prod(-1) ** 0.25
