"""Induction heads: look up where the last tokens stood before, and raise what came after them there."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import InductionConfig
from latentforge.model.copies import Copies, copies_of_texts
from latentforge.model.layers import TABLE_SCALE, output_scale
from latentforge.model.lookup import look_up

_TINY = 1e-12


class Found(NamedTuple):
    """What stands in texts of b·L tokens behind the places that are like each token's own.

    Attributes:
        vectors: to be added to what an output table reads, float [b, L, out_size].
        copies: to be added to the b·L rows of logits.
    """

    vectors: Tensor
    copies: Copies


@dataclass
class InductionState:
    """A text so far, of b rows and h heads; made by :meth:`InductionHead.start`, changed in place.

    Attributes:
        keys: what stood before each token, float [b·h, room, size]; the first is that of finding nothing, all zero, and
            the one behind the last token is the query. Products of two are scores.
        values: of the tokens themselves, float [b·h, room, size]; the first is zero.
        ids: of the tokens, int64 [b, room]; the first is of no token.
        base: what is added to the scores, float [b·h, room, 1]: the score of finding nothing, then zeros.
        count: how many keys are looked at, one more than there are tokens; the room grows with them.
        partial: what the last tokens give to the places that are still to come, float [b, context - 1, h·size].
        read: maps a token to its parts of the ``context`` places behind it and to its value, [(context + 1)·h·size, e].
        out: from what is found to the output, [out_size, h·size].
        sharpness: square root of the scores', float [h, 1].
        gain: of the boosts, float [h].
    """

    keys: Tensor
    values: Tensor
    ids: Tensor
    base: Tensor
    count: int
    partial: Tensor
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
        before = F.pad(embedded[:, :-1], (0, 0, self.context, 0))
        windows = before.unfold(1, self.context, 1).transpose(2, 3).flatten(2)
        places = F.normalize(self._split(self.read(windows)), dim=-1, eps=_TINY)
        queries = places * self.log_sharpness.exp()[:, None, None]
        values = self._split(self.value(embedded))
        found, boosts = look_up(queries, places, values, self.nothing, self.gain * TABLE_SCALE)
        vectors = self.out(found.transpose(1, 2).flatten(2)) * self._output_scale
        return Found(vectors, copies_of_texts(boosts, ids))

    def start(self, batch_size: int) -> InductionState:
        """The state of empty texts."""
        size, zeros = self.size, self.read.weight.new_zeros
        newest_first = self.read.weight.unflatten(1, (self.context, -1)).flip(1).transpose(0, 1).flatten(0, 1)
        rows = batch_size * self.heads
        base = F.pad(self.nothing[:, None, None], (0, 0, 0, 1)).repeat(batch_size, 1, 1)
        return InductionState(
            keys=zeros(rows, 2, size),
            values=zeros(rows, 2, size),
            ids=torch.zeros(batch_size, 2, dtype=torch.int64, device=base.device),
            base=base,
            count=1,
            partial=zeros(batch_size, self.context - 1, self.heads * size),
            read=torch.cat([newest_first, self.value.weight]),
            out=self.out.weight * self._output_scale,
            sharpness=(self.log_sharpness / 2).exp()[:, None],
            gain=self.gain * TABLE_SCALE,
        )

    def advance(self, state: InductionState, ids: Tensor, embedded: Tensor) -> None:
        """Reads t more tokens, int64 [b, t] and embedded [b, t, e]."""
        tokens, first = embedded.shape[1], state.count
        if not tokens:
            return
        end = first + tokens
        if end >= state.keys.shape[1]:
            # At least doubled, so that all copying together is no more than the text.
            more = max(tokens, first)
            state.keys, state.values, state.base = (
                F.pad(x, (0, 0, 0, more)) for x in (state.keys, state.values, state.base)
            )
            state.ids = F.pad(state.ids, (0, more))
        width = self.heads * self.size
        parts, values = F.linear(embedded, state.read).split((self.context * width, width), -1)
        parts = parts.unflatten(-1, (self.context, width))
        # Part n of token i belongs to the place behind token i + n.
        if tokens == 1:
            places = parts[:, 0]
        else:
            places = parts.new_zeros(len(parts), tokens + self.context - 1, width)
            for n in range(self.context):
                places[:, n : n + tokens] += parts[:, :, n]
        places[:, : self.context - 1] += state.partial
        state.partial = places[:, tokens:]
        known = places[:, :tokens].unflatten(-1, (self.heads, self.size))
        keys = known * (state.sharpness / known.norm(dim=-1, keepdim=True).clamp_min(_TINY))
        state.keys[:, first + 1 : end + 1] = keys.transpose(1, 2).flatten(0, 1)
        state.values[:, first:end] = self._split(values).flatten(0, 1)
        state.ids[:, first:end] = ids
        state.count = end

    def find(self, state: InductionState) -> tuple[Tensor, Tensor, Tensor]:
        """What is found before the next token: its vector [b, out_size], and boosts [b, n] of the ids [b, n]."""
        n = state.count
        query = state.keys[:, n, :, None]
        shares = torch.baddbmm(state.base[:, :n], state.keys[:, :n], query).softmax(1)
        found = (shares.mT @ state.values[:, :n]).view(-1, self.heads * self.size)
        boosts = state.gain @ shares.view(-1, self.heads, n)
        return F.linear(found, state.out), boosts[:, 1:], state.ids[:, 1:n]

    def _split(self, x: Tensor) -> Tensor:
        """Tokens' h·size entries by head: [b, L, h·size] to [b, h, L, size]."""
        split: Tensor = x.unflatten(-1, (self.heads, self.size))
        return split.transpose(1, 2)
