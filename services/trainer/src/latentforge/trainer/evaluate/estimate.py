"""A figure with its interval."""

from typing import NamedTuple

import torch
from torch import Tensor

from latentforge.model.metrics.intervals import cluster_bootstrap


class Estimate(NamedTuple):
    """A mean and its interval at 95 %, in the unit of what was averaged."""

    value: float
    low: float
    high: float


def ratio_of_sums(sums: Tensor, counts: Tensor, clusters: Tensor, seed: int = 0) -> Estimate:
    """Σ sums / Σ counts; the interval redraws whole clusters (``cluster_bootstrap``).

    Args:
        sums, counts: [n].
        clusters: int64 [n], any id of what each belongs to, like a sequence.
        seed: of the interval.

    Raises:
        ValueError: fewer than 2 clusters.
    """
    ids, inverse = torch.unique(clusters, return_inverse=True)
    by_cluster = torch.zeros(2, len(ids), dtype=torch.float64)
    by_cluster.index_add_(1, inverse, torch.stack([sums.double(), counts.double()]))
    low, high = cluster_bootstrap(by_cluster[0], by_cluster[1], seed=seed)
    return Estimate((by_cluster[0].sum() / by_cluster[1].sum()).item(), low, high)


def mean(values: Tensor, clusters: Tensor, seed: int = 0) -> Estimate:
    """Mean of values [n] in clusters [n]; as :func:`ratio_of_sums`."""
    return ratio_of_sums(values, torch.ones(len(values)), clusters, seed)
