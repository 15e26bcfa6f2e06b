import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.induction_attention import AttentionBlocks, InductionAttention

B, H, L, D, W, V = 2, 3, 11, 4, 5, 7


def make_attention() -> InductionAttention:
    rng = torch.Generator().manual_seed(5)
    shapes = ((B, H, L, D), (B, H, L, D), (B, H, L, D), (H,), (H,), (W, H * D))
    tensors = [torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_() for shape in shapes]
    return InductionAttention._make([*tensors, torch.randint(V, (B, L), generator=rng), None])


def masked_softmax(attention: InductionAttention) -> tuple[Tensor, Tensor]:
    """Vectors [b·L, w] and boosts [b·L, L] of all places, with every pair of places at once."""
    queries, keys, values, nothing, gain, out = attention[:6]
    later = torch.ones(L, L, dtype=torch.bool).triu()
    scores = (queries @ keys.mT).masked_fill(later, -torch.inf)
    shares = torch.cat([nothing[:, None, None].expand(B, H, L, 1), scores], -1).softmax(-1)[..., 1:]
    found = (shares @ values).transpose(1, 2).flatten(2)
    return (found @ out.T).flatten(0, 1), torch.einsum("bhij,h->bij", shares, gain).flatten(0, 1)


def test_looking_up_is_a_masked_softmax_and_so_are_its_gradients() -> None:
    attention = make_attention()
    wanted, found = masked_softmax(attention), attention.look_up()
    assert found.ids.equal(attention.ids.repeat_interleave(L, 0))
    weights = [torch.randn_like(x) for x in wanted]
    for ours, theirs in zip(found[:2], wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(x, attention[:6], weights) for x in (found[:2], wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_some_places_in_any_order_find_what_they_find_among_all() -> None:
    attention, places = make_attention(), torch.tensor([13, 0, 20, 13, 4])
    whole = masked_softmax(attention)
    for found in (attention.look_up(places), attention.at(places).look_up(), attention.at(places).look_up(slice(0, 5))):
        for ours, theirs in zip(found[:2], whole, strict=True):
            torch.testing.assert_close(ours, theirs[places])
    torch.testing.assert_close(attention.at(places).look_up(torch.tensor([2])).boosts, whole[1][[20]])


@pytest.mark.parametrize("at_once", [1, 4, 128])
def test_blocks_find_the_same_and_give_its_gradients(at_once: int) -> None:
    """The gradients by autograd's are checked against finite differences too."""
    attention = make_attention()
    wanted = masked_softmax(attention)
    weights = [torch.randn_like(x) for x in wanted]
    blocks = AttentionBlocks(InductionAttention._make([*(tensor.detach() for tensor in attention[:7]), None]))
    for text in range(B):
        for first in range(0, L, at_once):
            end = min(first + at_once, L)
            vectors, boosts, ids = blocks.find(text, first, end)
            rows = slice(text * L + first, text * L + end)
            torch.testing.assert_close(vectors, wanted[0][rows])
            torch.testing.assert_close(boosts[:, 1:], wanted[1][rows, :end])
            assert not wanted[1][rows, end:].any()
            assert not boosts[:, 0].any()
            assert ids[:, 1:].equal(attention.ids[text, :end].expand(end - first, -1))
            blocks.learn(weights[0][rows], F.pad(weights[1][rows, :end], (1, 0), value=9.0))
    for ours, theirs in zip(blocks.gradients(), torch.autograd.grad(wanted, attention[:6], weights), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(
        lambda *tensors: masked_softmax(InductionAttention._make([*tensors, attention.ids, None])), attention[:6]
    )


def test_nobody_finds_anything_before_the_first_token() -> None:
    attention = make_attention()
    found = attention.look_up(torch.tensor([0, L]))
    assert not found.vectors.any()
    assert not found.boosts.any()
    assert not AttentionBlocks(attention._replace(gain=attention.gain.detach())).find(1, 0, 3)[1][0].any()


def test_large_scores_stay_finite() -> None:
    attention = InductionAttention._make(
        [*(1000 * x.detach() for x in make_attention()[:6]), make_attention().ids, None]
    )
    assert all(x.isfinite().all() for x in attention.look_up()[:2])
    blocks = AttentionBlocks(attention)
    vectors, boosts, _ = blocks.find(0, 0, L)
    assert vectors.isfinite().all()
    assert boosts.isfinite().all()
    blocks.learn(torch.ones_like(vectors), torch.ones_like(boosts))
    assert all(gradient.isfinite().all() for gradient in blocks.gradients())
