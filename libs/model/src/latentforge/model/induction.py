"""Induction heads: look up where the last tokens stood before, and raise what came after them there."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import InductionConfig
from latentforge.model.induction_attention import strictly_causal_attention
from latentforge.model.layers import TABLE_SCALE, output_scale
from latentforge.model.pointer_logits import PointerLogits, pointer_logits_of_texts

_TINY = 1e-12


class Found(NamedTuple):
    """What stands in texts of b·L tokens behind the places that are like each token's own.

    Attributes:
        vectors: to be added to what an output table reads, float [b, L, out_size].
        pointer_logits: to be added to the logits of the b·L tokens.
    """

    vectors: Tensor
    pointer_logits: PointerLogits


@dataclass
class InductionState:
    """b texts so far, read by h heads; made by :meth:`InductionHead.start`, changed in place.

    A place is where the next token goes; its key is a map of the ``context`` tokens before it. The score of finding
    nothing is an entry like the others' here, with a zero key and ``base`` added: so one softmax does for all.

    Attributes:
        tokens: for each token the key of the place before it and its value, side by side, float [b·h, room, 2·size].
            The first stands for finding nothing and is zero. Products of two keys are scores.
        ids: of the tokens, int64 [b, room]; the first is of no token.
        base: what is added to the scores, float [b·h, room, 1]: the score of finding nothing, then zeros.
        count: how many of these hold, one more than there are tokens; the room grows with them.
        recent: the last tokens, embedded, float [b, context - 1, e].
        here: the key of the place before the next token, float [b·h, 1, size].
        read: maps ``context`` tokens side by side to the key behind them and the value of the last, by head,
            [h·2·size, context·e].
        out: from what is found to the output, [out_size, h·size].
        sharpness: the square root of what cosines are multiplied by, float [b·h, 1, 1]: as both of a product's keys are
            multiplied by it, one set of keys serves as queries too.
        gain: of the boosts, float [b, 1, h].
    """

    tokens: Tensor
    ids: Tensor
    base: Tensor
    count: int
    recent: Tensor
    here: Tensor
    read: Tensor
    out: Tensor
    sharpness: Tensor
    gain: Tensor


def build_induction(embed_size: int, out_size: int, config: InductionConfig) -> "InductionHead | None":
    """The head that a config asks for; None for a context of 0."""
    return InductionHead(embed_size, out_size, config) if config.context else None


class InductionHead(nn.Module):
    """Attention over single tokens: query and keys are one map of the ``context`` tokens before a place.

    So the query at a place finds the places in the text before it where alike tokens stood. What it finds does two
    things. It raises the logit of the very token that followed there, by the attention's share times a learnt gain, as
    in a pointer network or a neural cache (Vinyals et al. 2015, Grave et al. 2017): no table has to spell it. And the
    values of the tokens that followed are added to what the output table reads. Similarities are cosines times a learnt
    sharpness, beside a learnt score of finding nothing.

    Transformers learn such heads by themselves, in two layers and from many tokens (Olsson et al., "In-context Learning
    and Induction Heads", 2022); a student that reads chunks sees the same text cut differently each time it comes, and
    can hardly.
    """

    def __init__(self, embed_size: int, out_size: int, config: InductionConfig) -> None:
        """Makes heads whose vectors are of ``out_size`` and start at zero."""
        super().__init__()
        self.context, self.heads, self.size = config.context, config.num_heads, config.size
        width = config.num_heads * config.size
        self.read = nn.Linear(config.context * embed_size, width, bias=False)
        self.value = nn.Linear(embed_size, width, bias=False)
        self.out = nn.Linear(width, out_size, bias=False)
        self.log_sharpness = nn.Parameter(torch.full((config.num_heads,), math.log(10.0)))
        self.nothing = nn.Parameter(torch.full((config.num_heads,), 5.0))
        self.gain = nn.Parameter(torch.full((config.num_heads,), 2.0 / TABLE_SCALE))
        self._output_scale = output_scale(out_size)
        nn.init.zeros_(self.out.weight)

    def forward(self, ids: Tensor, embedded: Tensor) -> Found:
        """What is found before every token of texts, int64 [b, L], embedded [b, L, e]: for token i out of those < i."""
        # Place i has the tokens i - context … i - 1, zeros before the text: nothing of token i itself.
        before = F.pad(embedded[:, :-1], (0, 0, self.context, 0))
        places = F.normalize(self._split(self.read(self._windows(before))), dim=-1, eps=_TINY)
        queries = places * self.log_sharpness.exp()[:, None, None]
        values = self._split(self.value(embedded))
        found, boosts = strictly_causal_attention(queries, places, values, self.nothing, self.gain * TABLE_SCALE)
        vectors = self.out(found.transpose(1, 2).flatten(2)) * self._output_scale
        return Found(vectors, pointer_logits_of_texts(boosts, ids))

    def start(self, batch_size: int) -> InductionState:
        """The state of empty texts."""
        size, num, zeros = self.size, batch_size * self.heads, self.read.weight.new_zeros
        embed_size = self.value.in_features
        # The value is a map of the last of the context's tokens: padded, it is made by the same product as the key.
        value = F.pad(self.value.weight, ((self.context - 1) * embed_size, 0))
        by_head = [weight.unflatten(0, (self.heads, size)) for weight in (self.read.weight, value)]
        return InductionState(
            tokens=zeros(num, 1, 2 * size),
            ids=torch.zeros(batch_size, 1, dtype=torch.int64, device=value.device),
            base=self.nothing[:, None, None].repeat(batch_size, 1, 1),
            count=1,
            recent=zeros(batch_size, self.context - 1, embed_size),
            here=zeros(num, 1, size),
            read=torch.cat(by_head, 1).flatten(0, 1),
            out=self.out.weight * self._output_scale,
            sharpness=(self.log_sharpness / 2).exp()[:, None, None].repeat(batch_size, 1, 1),
            gain=(self.gain * TABLE_SCALE).expand(batch_size, 1, -1).contiguous(),
        )

    def advance(self, state: InductionState, ids: Tensor, embedded: Tensor) -> None:
        """Reads t more tokens, int64 [b, t] and embedded [b, t, e]."""
        batch_size, tokens = ids.shape
        if not tokens:
            return
        first, end = state.count, state.count + tokens
        if end > state.tokens.shape[1]:
            # At least doubled, so that all copying together is no more than the text.
            more = max(tokens, first)
            state.tokens, state.base = F.pad(state.tokens, (0, 0, 0, more)), F.pad(state.base, (0, 0, 0, more))
            state.ids = F.pad(state.ids, (0, more))
        # One token at a time is most of the time, and its time is that of starting operations: they are kept few. So
        # key and value come from one product (``read``), of a window that is a view where there is only one.
        known = torch.cat([state.recent, embedded], 1)
        windows = known.view(batch_size, 1, -1) if tokens == 1 else self._windows(known)
        made = F.linear(windows, state.read).view(batch_size, tokens, self.heads, 2 * self.size)
        places, values = made.transpose(1, 2).reshape(-1, tokens, 2 * self.size).split(self.size, -1)
        keys = places * (state.sharpness / places.norm(dim=-1, keepdim=True).clamp_min_(_TINY))
        # A token is found by the key of the place before it, and makes the key of the place behind it.
        before = state.here if tokens == 1 else torch.cat([state.here, keys[:, :-1]], 1)
        state.tokens[:, first:end] = torch.cat([before, values], -1)
        state.ids[:, first:end] = ids
        state.count, state.recent, state.here = end, known[:, tokens:], keys[:, -1:]

    def find(self, state: InductionState) -> tuple[Tensor, Tensor, Tensor]:
        """What is found before the next token: its vector [b, out_size], and boosts [b, n] of the ids [b, n]."""
        n, batch_size = state.count, len(state.ids)
        # One query for each text and head: entries along dimension 1, the first of them the score of finding nothing,
        # whose value is zero and whose share is left out of the boosts.
        keys, values = state.tokens[:, :n].split(self.size, -1)
        shares = torch.baddbmm(state.base[:, :n], keys, state.here.mT).softmax(1)
        found = torch.bmm(shares.mT, values).view(batch_size, -1)
        boosts = torch.bmm(state.gain, shares.view(batch_size, self.heads, n))
        return F.linear(found, state.out), boosts[:, 0, 1:], state.ids[:, 1:n]

    def _windows(self, tokens: Tensor) -> Tensor:
        """Every ``context`` tokens that stand side by side, [b, t + context - 1, e] to [b, t, context·e]."""
        return tokens.unfold(1, self.context, 1).transpose(2, 3).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """Tokens' h·size entries by head: [b, L, h·size] to [b, h, L, size]."""
        split: Tensor = x.unflatten(-1, (self.heads, self.size))
        return split.transpose(1, 2)
