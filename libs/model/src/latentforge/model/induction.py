"""The induction head: looks up where the last tokens stood before, and raises what came after them there."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import InductionConfig
from latentforge.model.layers import output_scale


@dataclass
class InductionState:
    """A text so far, of b rows; made by :meth:`InductionHead.start`, changed in place.

    Attributes:
        keys: what stood before each token, float [b, room, size]; the first is that of finding nothing, all zero, and
            the one behind the last token is the query.
        values: of the tokens themselves, float [b, room, size]; the first is zero.
        base: what is added to the scores, float [b, room, 1]: the score of finding nothing, then zeros.
        count: how many keys and values are looked at; the room grows with them.
        partial: what the last tokens give to the places that are still to come, float [b, context - 1, size].
        read: maps a token to its parts of the ``context`` places behind it and to its value, [(context + 1)·size, e].
        out: the head's last map, scaled, [out_size, size].
        sharpness: of the scores.
    """

    keys: Tensor
    values: Tensor
    base: Tensor
    count: int
    partial: Tensor
    read: Tensor
    out: Tensor
    sharpness: float


_TINY = 1e-12


def build_induction(embed_size: int, out_size: int, config: InductionConfig) -> "InductionHead | None":
    """The head that a config asks for; None for a context of 0."""
    return InductionHead(embed_size, out_size, config) if config.context else None


class InductionHead(nn.Module):
    """One attention over single tokens: query and keys are one map of the ``context`` tokens before a place.

    So the query at a place finds the places in the text before it where alike tokens stood, and the values are the
    tokens that followed there. Transformers learn such heads by themselves, in two layers and from many tokens (Olsson
    et al., "In-context Learning and Induction Heads", 2022); a student that reads chunks sees the same text cut
    differently each time it comes, and can hardly. Similarities are cosines times a learnt sharpness, beside a learnt
    score of finding nothing.
    """

    def __init__(self, embed_size: int, out_size: int, config: InductionConfig) -> None:
        """Makes a head whose output, of ``out_size``, is added to what an output table reads; it starts at zero."""
        super().__init__()
        self.context, self.size = config.context, config.size
        self.read = nn.Linear(config.context * embed_size, config.size, bias=False)
        self.value = nn.Linear(embed_size, config.size, bias=False)
        self.out = nn.Linear(config.size, out_size, bias=False)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
        self.nothing = nn.Parameter(torch.tensor(5.0))
        self._output_scale = output_scale(out_size)
        nn.init.zeros_(self.out.weight)

    def forward(self, embedded: Tensor) -> Tensor:
        """For every token of a text what is found before it: float [b, L, e] to [b, L, out_size]; token i reads < i."""
        before = F.pad(embedded[:, :-1], (0, 0, self.context, 0))
        places = self._places(before)
        # One more dimension, in which every query is 1, holds the score of finding nothing.
        queries = F.pad(places * self.log_sharpness.exp(), (0, 1), value=1.0)
        nothing = F.pad(self.nothing.view(1, 1, 1), (self.size, 0)).expand(len(places), 1, -1)
        keys = torch.cat([nothing, F.pad(places[:, :-1], (0, 1))], 1)
        values = F.pad(self.value(embedded[:, :-1]), (0, 0, 1, 0))
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0)
        out: Tensor = self.out(found) * self._output_scale
        return out

    def start(self, batch_size: int) -> InductionState:
        """The state of empty texts."""
        size, zeros = self.size, self.read.weight.new_zeros
        newest_first = self.read.weight.unflatten(1, (self.context, -1)).flip(1).transpose(0, 1).flatten(0, 1)
        return InductionState(
            keys=zeros(batch_size, 2, size),
            values=zeros(batch_size, 2, size),
            base=F.pad(self.nothing.view(1, 1, 1), (0, 0, 0, 1)).repeat(batch_size, 1, 1),
            count=1,
            partial=zeros(batch_size, self.context - 1, size),
            read=torch.cat([newest_first, self.value.weight]),
            out=self.out.weight * self._output_scale,
            sharpness=float(self.log_sharpness.detach().exp()),
        )

    def advance(self, state: InductionState, embedded: Tensor) -> Tensor:
        """Reads t more tokens, float [b, t, e]; gives what is found before the next one, [b, out_size].

        One token at a time is most of the time: it is kept to few, small operations.
        """
        if embedded.shape[1]:
            self._read(state, embedded)
        n = state.count
        query = state.keys[:, n, :, None]
        scores = torch.baddbmm(state.base[:, :n], state.keys[:, :n], query, alpha=state.sharpness)
        found = scores.softmax(1).mT @ state.values[:, :n]
        return F.linear(found[:, 0], state.out)

    def _read(self, state: InductionState, embedded: Tensor) -> None:
        tokens, first = embedded.shape[1], state.count
        end = first + tokens
        if end >= state.keys.shape[1]:
            # At least doubled, so that all copying together is no more than the text.
            more = (0, 0, 0, max(tokens, first))
            state.keys, state.values, state.base = (F.pad(x, more) for x in (state.keys, state.values, state.base))
        parts, values = F.linear(embedded, state.read).split((self.context * self.size, self.size), -1)
        parts = parts.unflatten(-1, (self.context, self.size))
        # Part n of token i belongs to the place behind token i + n.
        if tokens == 1:
            places = parts[:, 0]
        else:
            places = parts.new_zeros(len(parts), tokens + self.context - 1, self.size)
            for n in range(self.context):
                places[:, n : n + tokens] += parts[:, :, n]
        places[:, : self.context - 1] += state.partial
        state.partial = places[:, tokens:]
        known = places[:, :tokens]
        state.keys[:, first + 1 : end + 1] = known / known.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        state.values[:, first:end] = values
        state.count = end

    def _places(self, tokens: Tensor) -> Tensor:
        """Unit vectors for what stands in every window of ``context`` embedded tokens, [b, t, size]."""
        windows = tokens.unfold(1, self.context, 1).transpose(2, 3).flatten(2)
        return F.normalize(self.read(windows), dim=-1, eps=_TINY)
