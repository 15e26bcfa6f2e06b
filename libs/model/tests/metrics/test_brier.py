import itertools
import math

import pytest
import torch
from torch import Tensor

from latentforge.model.metrics.brier import BrierScore, brier_score, brier_values, brier_values_of_logprobs

P = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def brute_force(samples: Tensor, targets: Tensor) -> Tensor:
    """Every unordered pair of samples, one n-gram at a time."""
    num, positions, n_max = samples.shape
    wanted = torch.zeros(positions, n_max, dtype=torch.float64)
    for position, n in itertools.product(range(positions), range(1, n_max + 1)):
        grams = [tuple(samples[i, position, :n].tolist()) for i in range(num)]
        target = tuple(targets[position, :n].tolist())
        terms = [(a == target) + (b == target) - (a == b) for a, b in itertools.combinations(grams, 2)]
        wanted[position, n - 1] = sum(terms) / len(terms)
    return wanted


def exact_expectation(p: Tensor, q: Tensor, num: int) -> float:
    """Mean of Brier-1 over every outcome of ``num`` samples of p and a target of q, weighted by its probability."""
    outcomes = torch.cartesian_prod(*[torch.arange(len(p))] * num, torch.arange(len(q)))
    samples, targets = outcomes[:, :num].T[..., None], outcomes[:, num:]
    weights = p[outcomes[:, :num]].prod(1) * q[outcomes[:, num]]
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    return (weights @ brier_values(samples, targets)[:, 0]).item()


def score(values: Tensor, num_phases: int = 1, clusters: int = 10) -> BrierScore:
    positions = torch.arange(len(values))
    return brier_score(values, positions % num_phases, positions // num_phases % clusters, num_phases=num_phases)


@pytest.mark.parametrize("num", [2, 3, 5, 8])
def test_all_pairs_match_brute_force(num: int) -> None:
    rng = torch.Generator().manual_seed(num)
    samples = torch.randint(2, (num, 200, 8), generator=rng) * 100_000
    targets = torch.randint(2, (200, 8), generator=rng) * 100_000
    got = brier_values(samples, targets)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, brute_force(samples, targets), rtol=0, atol=1e-12)


def test_two_samples_give_the_textbook_formula() -> None:
    x1, x2 = torch.tensor([[5, 6], [5, 6], [5, 7], [1, 2]]), torch.tensor([[5, 6], [5, 9], [5, 7], [3, 4]])
    targets = torch.tensor([[5, 6], [5, 6], [5, 6], [5, 6]])
    values = brier_values(torch.stack((x1, x2)), targets)
    assert values.tolist() == [[1, 1], [1, 1], [1, -1], [0, 0]]


def test_log_probabilities_give_the_same_expectation() -> None:
    """Over every outcome of one sample and one target of two tokens, the second of which depends on the first."""
    second = torch.tensor([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * 4)
    x, y = outcomes[:, :2], outcomes[:, 2:]
    ours, theirs = P[:, None] * second, Q[:, None] * second.T / second.T.sum(1, keepdim=True)
    logprobs = [torch.stack([P[of[:, 0]], second[of[:, 0], of[:, 1]]], 1).log() for of in (x, y)]
    weights = ours[x[:, 0], x[:, 1]] * theirs[y[:, 0], y[:, 1]]
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    got = weights @ brier_values_of_logprobs(logprobs[0][None], logprobs[1])
    both = torch.stack([2 * (P * Q).sum() - (P * P).sum(), 2 * (ours * theirs).sum() - (ours * ours).sum()])
    torch.testing.assert_close(got, both, rtol=0, atol=1e-12)
    # The mean of several samples, not their sum.
    torch.testing.assert_close(
        brier_values_of_logprobs(logprobs[0].expand(5, -1, -1), logprobs[1]),
        brier_values_of_logprobs(logprobs[0][None], logprobs[1]),
    )


@pytest.mark.parametrize("num", [2, 3, 4])
def test_the_expectation_is_exact_for_known_distributions(num: int) -> None:
    wanted = (2 * (P * Q).sum() - (P * P).sum()).item()
    assert exact_expectation(P, Q, num) == pytest.approx(wanted, abs=1e-12)


def test_the_true_distribution_beats_a_sharpened_a_flattened_and_a_greedy_one() -> None:
    true = exact_expectation(P, P, 3)
    assert true == pytest.approx((P * P).sum().item(), abs=1e-12)
    for power in (0.25, 0.9, 1.1, 2.0, 4.0, 50.0):
        other = P**power / (P**power).sum()
        assert exact_expectation(other, P, 3) < true - 1e-4


def test_sampled_ngrams_approach_the_value_known_for_independent_tokens() -> None:
    rng = torch.Generator().manual_seed(0)
    samples = torch.multinomial(P, 8 * 20_000 * 8, replacement=True, generator=rng).reshape(8, 20_000, 8)
    targets = torch.multinomial(Q, 20_000 * 8, replacement=True, generator=rng).reshape(20_000, 8)
    values = brier_values(samples, targets)
    wanted = torch.tensor([2 * (P @ Q).item() ** n - (P @ P).item() ** n for n in range(1, 9)], dtype=torch.float64)
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - wanted).abs() < 4 * error).all()
    assert (error < 0.01).all()


def test_a_perfect_model_has_100() -> None:
    targets = torch.randint(50, (40, 8), generator=torch.Generator().manual_seed(0))
    got = score(brier_values(targets.expand(4, 40, 8), targets), num_phases=4)
    assert got == BrierScore(100.0, 100.0, 100.0, (1.0,) * 8, 1.0)


def test_a_score_is_the_geometric_mean_of_the_averaged_brier_n() -> None:
    values = torch.tensor([[0.8, 0.4, 0.2, 0.1, 0.0], [0.6, 0.4, 0.2, 0.1, 0.0]], dtype=torch.float64)
    got = score(values, clusters=2)
    assert got.brier_n == pytest.approx((0.7, 0.4, 0.2, 0.1, 0.0))
    assert got.value == pytest.approx(100 * (0.7 * 0.4 * 0.2 * 0.1) ** 0.25)
    assert got.brier_8 is None


def test_brier_8_is_that_of_eight_tokens() -> None:
    values = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]] * 4, dtype=torch.float64)
    assert score(values, clusters=2).brier_8 == pytest.approx(0.2)


def test_phases_weigh_the_same_however_many_positions_they_have() -> None:
    values = torch.cat((torch.full((30, 8), 0.9), torch.full((10, 8), 0.1))).double()
    phases = torch.cat((torch.zeros(30), torch.ones(10))).long()
    got = brier_score(values, phases, torch.arange(40) % 5, num_phases=2)
    assert got.brier_n == pytest.approx((0.5,) * 8)
    assert got.brier_8 == pytest.approx(0.5)
    assert (got.low, got.value, got.high) == pytest.approx((50, 50, 50))


def test_a_document_with_one_phase_only_leaves_the_interval_finite() -> None:
    values = torch.full((12, 4), 0.5, dtype=torch.float64)
    phases = torch.tensor([0] * 11 + [1])
    got = brier_score(values, phases, torch.arange(12), num_phases=2)
    assert (got.low, got.value, got.high) == pytest.approx((50, 50, 50))


@pytest.mark.parametrize("bad", [[0.5, -0.1, -0.1, 0.5], [0.5, 0.5, 0.5, 0.0], [0.5, 0.5, 0.5, -0.1]])
def test_an_estimate_that_is_not_above_zero_gives_zero(bad: list[float]) -> None:
    got = score(torch.tensor([bad] * 20, dtype=torch.float64))
    assert (got.low, got.value, got.high) == (0, 0, 0)
    assert got.brier_n == pytest.approx(bad)


def test_the_interval_covers_the_known_value_of_whole_documents() -> None:
    """Documents that are alike inside: each position of one repeats the document's outcome."""
    rng = torch.Generator().manual_seed(5)
    wanted = 100 * math.prod((P @ P).item() ** n for n in range(1, 5)) ** 0.25
    covered = 0
    for seed in range(100):
        samples = torch.multinomial(P, 4 * 300 * 4, replacement=True, generator=rng).reshape(4, 300, 4)
        targets = torch.multinomial(P, 300 * 4, replacement=True, generator=rng).reshape(300, 4)
        values = brier_values(samples, targets).repeat_interleave(5, 0)
        clusters = torch.arange(300).repeat_interleave(5)
        got = brier_score(values, torch.arange(5).repeat(300) % 2, clusters, num_phases=2, resamples=300, seed=seed)
        assert got.low < got.value < got.high
        covered += got.low < wanted < got.high
    assert 85 <= covered <= 100


def test_documents_may_have_any_ids_in_any_order() -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(60, 8, generator=rng, dtype=torch.float64)
    phases, clusters = torch.arange(60) % 3, torch.arange(60) // 6
    order = torch.randperm(60, generator=rng)
    one = brier_score(values, phases, clusters, num_phases=3)
    other = brier_score(values[order], phases[order], 1000 * clusters[order] - 7, num_phases=3)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), rel=1e-12)


def test_what_cannot_be_scored_is_refused() -> None:
    ids = torch.zeros(2, 6, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="at least 2 continuations of each prefix, got 1"):
        brier_values(ids[:1], ids[0])
    with pytest.raises(ValueError, match="token ids >= 0"):
        brier_values(ids, ids[0] - 100)
    values = torch.ones(6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 4 tokens, got 3"):
        score(values[:, :3])
    with pytest.raises(ValueError, match=r"phases must be each of 0 … 3, got \[0, 1\]"):
        brier_score(values, torch.arange(6) % 2, torch.arange(6), num_phases=4)
    with pytest.raises(ValueError, match="at least 2 clusters, got 1"):
        score(values, clusters=1)
