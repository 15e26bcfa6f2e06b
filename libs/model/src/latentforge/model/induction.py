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
        keys: what stood before each token, float [b, room, size + 1]; the first is that of finding nothing.
        values: of the tokens themselves, float [b, room, size]; the first is 0.
        count: how many of both hold; the room grows with them.
        recent: the last tokens, embedded, float [b, context, e].
        here: what stands before the next token, float [b, size].
    """

    keys: Tensor
    values: Tensor
    count: int
    recent: Tensor
    here: Tensor


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
        keys = torch.cat([self._no_key(len(places)), F.pad(places[:, :-1], (0, 1))], 1)
        values = F.pad(self.value(embedded[:, :-1]), (0, 0, 1, 0))
        found = F.scaled_dot_product_attention(self._query(places), keys, values, is_causal=True, scale=1.0)
        return self._out(found)

    def start(self, batch_size: int) -> InductionState:
        """The state of empty texts."""
        zeros = self.read.weight.new_zeros
        keys, values = self._no_key(batch_size), zeros(batch_size, 1, self.size)
        recent = zeros(batch_size, self.context, self.value.in_features)
        return InductionState(keys, values, 1, recent, zeros(batch_size, self.size))

    def advance(self, state: InductionState, embedded: Tensor) -> Tensor:
        """Reads t more tokens, float [b, t, e]; gives what is found before the next one, [b, out_size]."""
        tokens = embedded.shape[1]
        if tokens:
            known = torch.cat([state.recent, embedded], 1)
            places = self._places(known[:, 1:])
            end = state.count + tokens
            if end > state.keys.shape[1]:
                # At least doubled, so that all copying together is no more than the text.
                more = (0, 0, 0, max(end - state.count, state.count))
                state.keys, state.values = F.pad(state.keys, more), F.pad(state.values, more)
            state.keys[:, state.count : end, :-1] = torch.cat([state.here[:, None], places[:, :-1]], 1)
            state.values[:, state.count : end] = self.value(embedded)
            state.count, state.recent, state.here = end, known[:, -self.context :], places[:, -1]
        scores = state.keys[:, : state.count] @ self._query(state.here)[..., None]
        found = scores.softmax(1).mT @ state.values[:, : state.count]
        return self._out(found[:, 0])

    def _places(self, tokens: Tensor) -> Tensor:
        """Unit vectors for what stands in every window of ``context`` embedded tokens, [b, t, size]."""
        windows = tokens.unfold(1, self.context, 1).transpose(2, 3).flatten(2)
        return F.normalize(self.read(windows), dim=-1)

    def _query(self, places: Tensor) -> Tensor:
        return F.pad(places * self.log_sharpness.exp(), (0, 1), value=1.0)

    def _no_key(self, batch_size: int) -> Tensor:
        return F.pad(self.nothing.view(1, 1, 1), (self.size, 0)).expand(batch_size, 1, -1)

    def _out(self, found: Tensor) -> Tensor:
        out: Tensor = self.out(found) * self._output_scale
        return out
