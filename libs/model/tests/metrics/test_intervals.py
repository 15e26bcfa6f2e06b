import numpy as np
import pytest
import torch
from torch import Tensor

from latentforge.model.metrics.intervals import cluster_bootstrap


def correlated_sequences(rng: np.random.Generator, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, counts and cluster of each token: values with mean 3 that share a cluster's own offset."""
    counts = rng.integers(5, 40, clusters)
    values = [3 + rng.normal() + rng.normal(size=count) for count in counts]
    tokens = torch.from_numpy(np.concatenate(values))
    return torch.tensor([value.sum() for value in values]), torch.from_numpy(counts), tokens


def test_matches_a_loop_over_resamples() -> None:
    sums, counts, _ = correlated_sequences(np.random.default_rng(0), 30)
    rng = np.random.default_rng(7)
    drawn = [rng.integers(30, size=30) for _ in range(500)]
    means = [sum(sums[i].item() for i in row) / sum(counts[i].item() for i in row) for row in drawn]
    wanted = tuple(np.quantile(means, [0.025, 0.975]))
    assert cluster_bootstrap(sums, counts, resamples=500, seed=7) == pytest.approx(wanted, rel=1e-12)


def test_covers_the_mean_of_correlated_tokens_at_its_level() -> None:
    rng = np.random.default_rng(1)
    covered = covered_by_tokens = 0
    for seed in range(300):
        sums, counts, tokens = correlated_sequences(rng, 60)
        low, high = cluster_bootstrap(sums, counts, resamples=400, seed=seed)
        covered += low < 3 < high
        low, high = cluster_bootstrap(tokens, torch.ones(len(tokens)), resamples=100, seed=seed)
        covered_by_tokens += low < 3 < high
    # Four standard deviations of 300 tries at 95 % are 0.05; a percentile bootstrap of 60 clusters is a little narrow.
    assert 0.89 < covered / 300 < 0.99
    assert covered_by_tokens / 300 < 0.6


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, counts, _ = correlated_sequences(np.random.default_rng(2), 20)
    whole = cluster_bootstrap(sums, counts, seed=3)
    monkeypatch.setattr("latentforge.model.metrics.intervals._DRAWS_AT_ONCE", 7 * 20)
    assert cluster_bootstrap(sums, counts, seed=3) == pytest.approx(whole, rel=1e-12)


def test_the_seed_decides() -> None:
    sums, counts, _ = correlated_sequences(np.random.default_rng(2), 20)
    assert cluster_bootstrap(sums, counts, seed=3) == cluster_bootstrap(sums, counts, seed=3)
    assert cluster_bootstrap(sums, counts, seed=3) != cluster_bootstrap(sums, counts, seed=4)


def test_a_statistic_sees_ratios_of_every_column() -> None:
    sums = torch.tensor([[2.0, 30.0], [4.0, 60.0], [6.0, 90.0]])
    counts = torch.tensor([[1], [2], [3]])
    low, high = cluster_bootstrap(sums, counts, lambda ratio: ratio[:, 0] * ratio[:, 1])
    assert (low, high) == pytest.approx((60, 60))


def test_low_precision_sums_are_added_in_float64() -> None:
    sums = torch.full((4000,), 2049.0, dtype=torch.float16).float()
    low, high = cluster_bootstrap(sums.half(), torch.ones(4000), resamples=10)
    assert low == high == sums.half()[0].item()


@pytest.mark.parametrize(
    ("sums", "counts", "resamples", "message"),
    [
        ([1.0], [1.0], 10, "at least 2 clusters, got 1"),
        ([1.0, 2.0], [1.0, 1.0], 1, "resamples must be at least 2, got 1"),
        ([0.0, 2.0], [0.0, 1.0], 50, "no finite value"),
        ([float("nan"), 2.0], [1.0, 1.0], 50, "no finite value"),
    ],
)
def test_what_has_no_interval_is_refused(sums: list[float], counts: list[float], resamples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(torch.tensor(sums), torch.tensor(counts), resamples=resamples)
