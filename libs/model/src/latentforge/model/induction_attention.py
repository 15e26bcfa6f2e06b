"""The induction heads' attention over whole texts, block by block, so that nothing but its result is L² large.

Beside what attention usually gives, the shares themselves are wanted: summed over the heads, they are the copy boosts.
Fused attention kernels do not give them, and autograd would keep every head's, [b, h, L, L]; here the backward pass
makes them anew.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# As many queries at once as leave their shares in a processor's cache.
_QUERIES = 128


def strictly_causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, nothing: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Strictly causal attention beside a score of finding nothing, n.

    For each head, with s_ij = q_i · k_j for j < i:

        a_ij = exp(s_ij) / (exp(n) + Σ_{j' < i} exp(s_ij'))     found_i = Σ_j a_ij·v_j     boost_ij = Σ_heads gain·a_ij

    Strictly, because what is found at i predicts token i, and value i is that token. The shares sum to less than 1; at
    i = 0 there are none. Under autocast all of it is in float32: in a shorter format alike places could not be told
    apart.

    Args:
        queries, keys, values: float [b, h, L, d].
        nothing, gain: float [h].

    Returns:
        found, float [b, h, L, d]; boosts, float [b, L, L].
    """
    run: Callable[..., tuple[Tensor, Tensor]] = _StrictlyCausalAttention.apply
    inputs = queries, keys, values, nothing, gain
    if not torch.is_autocast_enabled(queries.device.type):
        return run(*inputs)
    with torch.autocast(queries.device.type, enabled=False):
        return run(*(tensor.float() for tensor in inputs))


def _shares(queries: Tensor, keys: Tensor, nothing: Tensor) -> Iterator[tuple[slice, int, Tensor]]:
    """Which queries, how many keys they may see at most, and their shares of those, [b, h, queries, keys]."""
    length = queries.shape[2]
    none = nothing[:, None, None]
    # Only the last square of a block's scores holds keys that are not before the query: the diagonal and above it.
    later = torch.ones(_QUERIES, _QUERIES, dtype=torch.bool, device=queries.device).triu()
    for first in range(0, length, _QUERIES):
        end = min(first + _QUERIES, length)
        shares = queries[:, :, first:end] @ keys[:, :, :end].mT
        shares[..., first:].masked_fill_(later[: end - first, : end - first], -torch.inf)
        # The softmax, with the score of finding nothing in its maximum and its sum, but not among its shares.
        top = torch.maximum(shares.amax(-1, keepdim=True), none)
        shares.sub_(top).exp_()
        shares.div_(shares.sum(-1, keepdim=True) + (none - top).exp())
        yield slice(first, end), end, shares


class _StrictlyCausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, nothing: Tensor, gain: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(queries, keys, values, nothing, gain)
        batch_size, _, length, _ = queries.shape
        found, boosts = torch.empty_like(values), values.new_zeros(batch_size, length, length)
        for part, end, shares in _shares(queries, keys, nothing):
            found[:, :, part] = shares @ values[:, :, :end]
            for head, weight in enumerate(gain):
                boosts[:, part, :end] += shares[:, head] * weight
        return found, boosts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_found: Tensor, of_boosts: Tensor) -> tuple[Tensor, ...]:
        queries, keys, values, nothing, gain = ctx.saved_tensors
        of_queries, of_keys, of_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        of_nothing, of_gain = torch.zeros_like(nothing), torch.zeros_like(gain)
        for part, end, shares in _shares(queries, keys, nothing):
            # With g_ij the gradient of a_ij, that of a softmax: ∂L/∂s_ij = a_ij·(g_ij - Σ_j' a_ij'·g_ij'). The score of
            # finding nothing has the same, and its own share, 1 - Σ_j a_ij, is used nowhere: its g is 0.
            boosts = of_boosts[:, part, :end].unsqueeze(1)
            of_gain += (shares * boosts).sum((0, 2, 3))
            of_values[:, :, :end] += shares.mT @ of_found[:, :, part]
            of_shares = of_found[:, :, part] @ values[:, :, :end].mT
            of_shares += gain[:, None, None] * boosts
            inner = (shares * of_shares).sum(-1, keepdim=True)
            of_nothing -= ((1 - shares.sum(-1, keepdim=True)) * inner).sum((0, 2, 3))
            of_scores = of_shares.sub_(inner).mul_(shares)
            of_queries[:, :, part] = of_scores @ keys[:, :, :end]
            of_keys[:, :, :end] += of_scores.mT @ queries[:, :, part]
        return of_queries, of_keys, of_values, of_nothing, of_gain
