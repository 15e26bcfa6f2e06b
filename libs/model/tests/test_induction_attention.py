import pytest
import torch
from torch import Tensor

from latentforge.model import induction_attention
from latentforge.model.induction_attention import strictly_causal_attention

B, H, L, D = 2, 3, 11, 4


def make_inputs() -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    shapes = ((B, H, L, D), (B, H, L, D), (B, H, L, D), (H,), (H,))
    return [torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("at_once", [1, 4, 128])
def test_it_is_a_masked_softmax_and_so_are_its_gradients(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(induction_attention, "_QUERIES", at_once)
    inputs = queries, keys, values, nothing, gain = make_inputs()
    later = torch.ones(L, L, dtype=torch.bool).triu()
    scores = (queries @ keys.mT).masked_fill(later, -torch.inf)
    shares = torch.cat([nothing[:, None, None].expand(B, H, L, 1), scores], -1).softmax(-1)[..., 1:]
    wanted = shares @ values, torch.einsum("bhij,h->bij", shares, gain)
    found = strictly_causal_attention(*inputs)
    weights = [torch.randn_like(x) for x in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(x, inputs, weights) for x in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nobody_finds_anything_before_the_first_token() -> None:
    found, boosts = strictly_causal_attention(*make_inputs())
    assert not found[:, :, 0].any()
    assert not boosts.triu().any()


def test_large_scores_stay_finite() -> None:
    inputs = [1000 * x.detach() for x in make_inputs()]
    assert all(x.isfinite().all() for x in strictly_causal_attention(*inputs))


def test_autocast_changes_nothing() -> None:
    inputs = [x.detach().float().requires_grad_() for x in make_inputs()]
    found = strictly_causal_attention(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under = strictly_causal_attention(*(x.bfloat16() if x.dim() > 1 else x for x in inputs))
        again = strictly_causal_attention(*inputs)
    assert all(x.dtype == torch.float32 for x in under)
    for ours, theirs in zip(again, found, strict=True):
        assert ours.equal(theirs)
    weights = [torch.randn_like(x) for x in found]
    for ours, theirs in zip(*(torch.autograd.grad(x, inputs, weights) for x in (under, found)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
