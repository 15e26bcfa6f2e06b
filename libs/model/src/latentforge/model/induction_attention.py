"""The induction heads' attention over whole texts, which never holds a number for every pair of places.

For each head, with s_ij = q_i · k_j for j < i and the score n of finding nothing,

    a_ij = exp(s_ij) / (exp(n) + Σ_{j' < i} exp(s_ij'))     found_i = Σ_j a_ij·v_j     boost_ij = Σ_heads gain·a_ij

Strictly causal, because what is found at i predicts token i, and value i is that token. The shares sum to less than 1;
at i = 0 there are none. What is found, times ``out``, is added to what the output layer reads for token i; boost ij is
added to the logit of the token that stands at j.

Boosts are L² large, and so is their gradient, which the token losses know block by block. So these ask
:class:`AttentionBlocks` for a block of places, make their logits of it, and hand back its gradients at once: the shares
are made once, and memory grows with L alone. :meth:`InductionAttention.look_up` is the same for any places, by
autograd.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LookedUp(NamedTuple):
    """What is found before n tokens.

    Attributes:
        vectors: to be added to what the output layer reads, float [n, w].
        boosts: to be added to the logits of ``ids``, float [n, L]; a token that stands there several times gets the
            sum, as in a pointer network (Vinyals et al., arXiv 1506.03134).
        ids: int64 [n, L].
    """

    vectors: Tensor
    boosts: Tensor
    ids: Tensor


class InductionAttention(NamedTuple):
    """Queries, keys and values of whole texts; places count through them, text after text.

    Attributes:
        queries, keys, values: float [b, h, L, d].
        nothing, gain: float [h].
        out: from what all heads find to the output layer's last columns, float [w, h·d].
        ids: of the texts' tokens, int64 [b, L].
        places: of the output layer's rows, int64 [n]; None where these are all places.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    nothing: Tensor
    gain: Tensor
    out: Tensor
    ids: Tensor
    places: Tensor | None = None

    def at(self, places: Tensor) -> "InductionAttention":
        """The same for rows of which each belongs to one of the places, int64 [n]."""
        return self._replace(places=places)

    def look_up(self, rows: Tensor | slice = slice(None)) -> LookedUp:
        """What is found for some of the rows, int64 [n] or a slice; differentiable."""
        b, h, length, _ = self.queries.shape
        every = torch.arange(b * length, device=self.ids.device) if self.places is None else self.places
        places = every[rows]
        texts, positions = places // length, places % length
        vectors = self.queries.new_zeros(len(places), len(self.out))
        boosts = self.queries.new_zeros(len(places), length)
        columns = torch.arange(length, device=self.ids.device)
        for text in texts.unique():
            mine = (texts == text).nonzero()[:, 0]
            scores = self.queries[text][:, positions[mine]] @ self.keys[text].mT
            scores = scores.masked_fill(columns >= positions[mine, None], -torch.inf)
            nothing = self.nothing[:, None, None].expand(h, len(mine), 1)
            shares = torch.cat([nothing, scores], -1).softmax(-1)[..., 1:]
            found = (shares @ self.values[text]).transpose(0, 1).flatten(1)
            vectors = vectors.index_copy(0, mine, found @ self.out.T)
            boosts = boosts.index_copy(0, mine, torch.einsum("hij,h->ij", shares, self.gain))
        return LookedUp(vectors, boosts, self.ids[texts])


class AttentionBlocks:
    """Blocks of neighbouring places of one text, one after another: what they find, and then their gradients.

    A key and a value of zeros stand before each text's own, in column 0: the score of finding nothing is written over
    the product with that key, so that one softmax is over all. It boosts nothing and adds nothing.
    """

    def __init__(self, attention: InductionAttention) -> None:
        self._attention = attention
        self._keys, self._values = (F.pad(x, (0, 0, 1, 0)) for x in (attention.keys, attention.values))
        self._ids = F.pad(attention.ids, (1, 0))
        sums = attention._replace(keys=self._keys, values=self._values)[:6]
        self._sums = InductionAttention._make([*map(torch.zeros_like, sums), attention.ids, None])
        self._block = (0, 0, 0)
        self._shares = self._found = attention.queries

    def find(self, text: int, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [m, w] and boosts [m, end + 1] of ids [m, end + 1] for the places first … end - 1 of a text."""
        attention = self._attention
        shares = attention.queries[text, :, first:end] @ self._keys[text, :, : end + 1].mT
        shares[..., 0] = attention.nothing[:, None]
        # Only the last square holds keys that are not before the query: the diagonal and above it.
        later = torch.ones(end - first, end - first, dtype=torch.bool, device=shares.device).triu()
        shares[..., first + 1 :].masked_fill_(later, -torch.inf)
        shares = shares.softmax(-1)
        found = (shares @ self._values[text, :, : end + 1]).transpose(0, 1).flatten(1)
        boosts = torch.mv(shares.flatten(1).T, attention.gain).view(shares.shape[1:])
        boosts[:, 0] = 0
        self._block, self._shares, self._found = (text, first, end), shares, found
        return found @ attention.out.T, boosts, self._ids[text, : end + 1].expand(end - first, -1)

    def learn(self, of_vectors: Tensor, of_boosts: Tensor) -> None:
        """Adds to the gradients what those of the last block's vectors and boosts come to; overwrites the latter."""
        attention, sums, shares = self._attention, self._sums, self._shares
        text, first, end = self._block
        heads, size = len(attention.gain), attention.queries.shape[-1]
        keys, values = self._keys[text, :, : end + 1], self._values[text, :, : end + 1]
        of_boosts[:, 0] = 0
        sums.out.addmm_(of_vectors.T, self._found)
        of_found = (of_vectors @ attention.out).unflatten(1, (heads, size)).transpose(0, 1)
        sums.gain.add_(torch.mv(shares.flatten(1), of_boosts.flatten()))
        of_shares = (of_found @ values.mT).addcmul_(of_boosts, attention.gain[:, None, None])
        # With g_ij the gradient of a_ij: ∂L/∂s_ij = a_ij·(g_ij - Σ_j' a_ij'·g_ij').
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
        sums.nothing.add_(of_scores[..., 0].sum(1))
        sums.queries[text, :, first:end] = of_scores @ keys
        sums.keys[text, :, : end + 1].baddbmm_(of_scores.mT, attention.queries[text, :, first:end])
        sums.values[text, :, : end + 1].baddbmm_(shares.mT, of_found)

    def gradients(self) -> tuple[Tensor, ...]:
        """Those of the first six tensors, summed over all blocks."""
        return self._sums._replace(keys=self._sums.keys[:, :, 1:], values=self._sums.values[:, :, 1:])[:6]
