import itertools
import math

import pytest
import torch
from torch import Tensor

from latentforge.model.metrics.mixture import mixture_log_likelihood, nested_mixture

LATENTS, K, V = 5, 3, 4


def tiny_student(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prior [LATENTS], log p_dec(x_k | z) of one true chunk [LATENTS, K], and the whole decoder [LATENTS, K, V]."""
    rng = torch.Generator().manual_seed(seed)
    prior = torch.rand(LATENTS, generator=rng, dtype=torch.float64).softmax(0)
    decoder = (3 * torch.randn(LATENTS, K, V, generator=rng, dtype=torch.float64)).log_softmax(-1)
    chunk = torch.randint(V, (K,), generator=rng)
    return prior, decoder[:, torch.arange(K), chunk], decoder


def reference(log_probs: list[list[float]]) -> list[float]:
    """The formula with its weights, one token at a time, in plain probabilities."""
    wanted, weights = [], [1.0] * len(log_probs)
    for k in range(len(log_probs[0])):
        total = sum(weights)
        p = sum(weight / total * math.exp(row[k]) for weight, row in zip(weights, log_probs, strict=True))
        wanted.append(math.log(p))
        weights = [weight * math.exp(row[k]) for weight, row in zip(weights, log_probs, strict=True)]
    return wanted


def expected_bound(prior: Tensor, true: Tensor, num: int) -> float:
    """Exact mean of the chunk's bound over every outcome of ``num`` latents."""
    outcomes = torch.tensor(list(itertools.product(range(LATENTS), repeat=num)))
    bound = mixture_log_likelihood(true[outcomes].transpose(0, 1)).sum(-1)
    return (prior[outcomes].prod(1) @ bound).item()


@pytest.mark.parametrize(("num", "k"), [(1, 4), (2, 1), (7, 4), (32, 8)])
def test_matches_the_slow_reference(num: int, k: int) -> None:
    rng = torch.Generator().manual_seed(num)
    log_probs = -6 * torch.rand(num, 9, k, generator=rng)
    got = mixture_log_likelihood(log_probs)
    assert got.dtype == torch.float64
    wanted = [reference(log_probs[:, chunk].tolist()) for chunk in range(9)]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_tokens_add_up_to_the_chunk() -> None:
    log_probs = 4 * torch.randn(16, 50, 8, generator=torch.Generator().manual_seed(0)).clamp(max=0)
    chunk = log_probs.double().sum(-1).logsumexp(0) - math.log(16)
    torch.testing.assert_close(mixture_log_likelihood(log_probs).sum(-1), chunk, rtol=0, atol=1e-11)


def test_each_token_is_a_distribution_given_those_before() -> None:
    _, _, decoder = tiny_student()
    chunks = torch.tensor(list(itertools.product(range(V), repeat=K)))
    log_probs = decoder[:, torch.arange(K), chunks]
    by_token = mixture_log_likelihood(log_probs).exp().reshape(V, V, V, K)
    for k in range(K):
        # The last axis that still differs is token k, whose probabilities sum to 1.
        given = by_token[..., k].movedim(k, -1).sum(-1)
        torch.testing.assert_close(given, torch.ones_like(given), rtol=0, atol=1e-12)


def test_the_expected_bound_is_below_the_truth_and_rises_with_latents() -> None:
    for seed in range(10):
        prior, true, _ = tiny_student(seed)
        truth = (prior.log() + true.sum(-1)).logsumexp(0).item()
        bounds = [expected_bound(prior, true, num) for num in (1, 2, 3, 5)]
        assert bounds[0] == pytest.approx((prior @ true.sum(-1)).item(), abs=1e-12)
        assert bounds == sorted(bounds)
        assert bounds[-1] < truth


def test_the_bound_converges_to_the_truth() -> None:
    prior, true, _ = tiny_student()
    rng = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(prior, 200_000, replacement=True, generator=rng)
    truth = (prior.log()[:, None] + true.cumsum(-1)).logsumexp(0).diff(prepend=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(mixture_log_likelihood(true[drawn][:, None])[0], truth, rtol=0, atol=0.02)


def test_nested_bounds_rise_on_average_and_have_the_expected_value() -> None:
    prior, true, _ = tiny_student(3)
    truth = (prior.log() + true.sum(-1)).logsumexp(0).item()
    drawn = torch.multinomial(prior, 128 * 4000, replacement=True, generator=torch.Generator().manual_seed(2))
    bounds = nested_mixture(true[drawn].reshape(128, 4000, K))
    assert list(bounds) == [1, 8, 32, 128]
    means = [bound.sum(-1).mean().item() for bound in bounds.values()]
    assert means == sorted(means)
    assert means[-1] < truth + 0.01
    for size in (1, 2, 3):
        chunks = nested_mixture(true[drawn].reshape(128, 4000, K), (size,))[size].sum(-1)
        error = chunks.std().item() / math.sqrt(4000)
        assert abs(chunks.mean().item() - expected_bound(prior, true, size)) < 4 * error


def test_nested_groups_are_disjoint_and_cover_the_draws() -> None:
    log_probs = -5 * torch.rand(7, 6, 4, generator=torch.Generator().manual_seed(0))
    bounds = nested_mixture(log_probs, (1, 3, 7))
    torch.testing.assert_close(bounds[1], log_probs.double().mean(0))
    two = torch.stack([mixture_log_likelihood(log_probs[:3]), mixture_log_likelihood(log_probs[3:6])])
    torch.testing.assert_close(bounds[3], two.mean(0))
    torch.testing.assert_close(bounds[7], mixture_log_likelihood(log_probs))


def test_very_unlikely_tokens_neither_overflow_nor_vanish() -> None:
    log_probs = torch.full((4, 1, 8), -1000.0)
    log_probs[0] = -900
    wanted = torch.full((1, 8), -900.0, dtype=torch.float64)
    wanted[0, 0] -= math.log(4)
    torch.testing.assert_close(mixture_log_likelihood(log_probs), wanted)


def test_impossible_tokens() -> None:
    inf = math.inf
    one_latent = torch.tensor([[[-inf, -1.0]], [[-2.0, -3.0]]])
    torch.testing.assert_close(
        mixture_log_likelihood(one_latent), torch.tensor([[-2 - math.log(2), -3.0]], dtype=torch.float64)
    )
    every_latent = torch.tensor([[[-1.0, -inf, -1.0]], [[-1.0, -inf, -1.0]]])
    assert mixture_log_likelihood(every_latent).tolist() == [[-1, -inf, -inf]]


def test_what_is_no_log_probability_is_refused() -> None:
    for bad in (0.7, math.nan):
        with pytest.raises(ValueError, match="must be log probabilities"):
            mixture_log_likelihood(torch.full((2, 3, 4), bad))
    with pytest.raises(ValueError, match="at least 1 latent"):
        mixture_log_likelihood(torch.zeros(0, 3, 4))
    with pytest.raises(ValueError, match=r"between 1 and the 8 draws, got \[0, 32\]"):
        nested_mixture(torch.zeros(8, 3, 4), (0, 8, 32))
