"""Confidence intervals of means over tokens that come in clusters (documents, sequences)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 2**22


def cluster_bootstrap(
    sums: Tensor,
    counts: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap at 95 % of ``statistic(Σ sums / Σ counts)``, whole clusters redrawn.

    Tokens of one document are alike, so that redrawing tokens would give an interval that is too narrow. For a mean in
    nats/token give each sequence's sum of nats and its number of tokens; for two models on the same sequences give the
    sums of their difference. (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.)

    Args:
        sums: [C] or [C, *S], one or several sums for each cluster.
        counts: how many values each sum holds, in a shape that broadcasts to that of sums.
        statistic: takes the ratios of r resamples, float64 [r, *S], and returns [r]; NaN stands where a resample had
            nothing to count. Without it sums must be [C].
        resamples: how many times C clusters are drawn, with replacement.
        seed: of the draws; the same seed and number of clusters give the same draws.

    Raises:
        ValueError: fewer than 2 clusters or resamples, or a statistic that is not finite.
    """
    num = sums.shape[0]
    if num < 2:
        raise ValueError(f"an interval wants at least 2 clusters, got {num}; evaluate more documents")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}; 1000 is usual")
    assert statistic is not None or sums.ndim == 1, sums.shape
    counts = torch.broadcast_to(counts, sums.shape)
    table = torch.stack((sums, counts)).detach().to("cpu", torch.float64).transpose(0, 1).reshape(num, -1)
    rng = np.random.default_rng(seed)
    parts: list[Tensor] = []
    at_once = max(1, _DRAWS_AT_ONCE // num)
    for first in range(0, resamples, at_once):
        r = min(at_once, resamples - first)
        # A resample is how many times each cluster was drawn, and its sums a product with those counts. Bins of its own
        # for every resample let one bincount count all.
        drawn = rng.integers(num, size=(r, num)) + num * np.arange(r)[:, None]
        times = torch.from_numpy(np.bincount(drawn.reshape(-1), minlength=r * num).reshape(r, num))
        total, count = (times.double() @ table).reshape(r, 2, *sums.shape[1:]).unbind(1)
        ratio = total / count
        parts.append(ratio if statistic is None else statistic(ratio))
    values = torch.cat(parts)
    assert values.shape == (resamples,), values.shape
    if not values.isfinite().all():
        raise ValueError("a resample of the clusters has no finite value; evaluate more documents with tokens in each")
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
