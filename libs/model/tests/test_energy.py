import pytest
import torch
from torch import Tensor

from latentforge.model.autoencoder import Posterior
from latentforge.model.energy import energy_loss

S, N, D, DRAWS = 5, 6, 7, 37


def reference(samples: Tensor, posterior: Posterior, seed: int) -> Tensor:
    """The same draws (sixteen at a time), but the plain broadcast and loops, in float64."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.cat([torch.randn(N, min(16, DRAWS - i), D, generator=rng) for i in range(0, DRAWS, 16)], 1)
    z = (posterior.mean[:, None] + posterior.log_std.exp()[:, None] * noise).double()
    x = samples.double()
    to_data = (x[:, :, None] - z[None]).norm(dim=-1).mean((0, 2))
    pairs = [(x[i] - x[j]).norm(dim=-1) for i in range(S) for j in range(S) if i != j]
    wanted: Tensor = 2 * to_data - torch.stack(pairs).mean(0)
    return wanted


def test_matches_the_naive_reference_in_value_and_gradient() -> None:
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(S, N, D, generator=rng).requires_grad_()
    posterior = Posterior(torch.randn(N, D, generator=rng), 0.3 * torch.randn(N, D, generator=rng) - 1)
    got = energy_loss(samples, posterior, DRAWS, torch.Generator().manual_seed(9))
    wanted = reference(samples, posterior, 9)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(got.sum(), samples)
    (theirs,) = torch.autograd.grad(wanted.sum(), samples)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_is_least_for_samples_of_the_right_distribution() -> None:
    rng = torch.Generator().manual_seed(1)
    posterior = Posterior(torch.zeros(500, D), torch.zeros(500, D))
    right = torch.randn(8, 500, D, generator=rng)
    losses = [energy_loss(x, posterior, 50, rng).mean() for x in (right, right + 0.5, 0.3 * right, 2 * right)]
    assert min(losses) == losses[0]


def test_samples_at_the_mean_of_a_sharp_posterior_stay_finite() -> None:
    samples = torch.zeros(3, N, D, requires_grad=True)
    energy_loss(
        samples + 1e-6 * torch.randn(3, N, D), Posterior(torch.zeros(N, D), torch.full((N, D), -10.0))
    ).sum().backward()
    assert samples.grad is not None
    assert samples.grad.isfinite().all()


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples for each latent, got 1"):
        energy_loss(torch.zeros(1, N, D), Posterior(torch.zeros(N, D), torch.zeros(N, D)))
