"""Induction heads: look up where the last tokens stood before, and raise what came after them there."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.config import InductionConfig
from latentforge.model.induction_attention import InductionAttention
from latentforge.model.layers import TABLE_SCALE, output_scale

_TINY = 1e-12


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

    def forward(self, ids: Tensor, embedded: Tensor) -> InductionAttention:
        """What finds something before every token of texts, int64 [b, L], embedded [b, L, e]: for token i out of those
        < i.

        Under autocast it is in float32 all the same: in a shorter format alike places could not be told apart.
        """
        # Place i has the tokens i - context … i - 1, zeros before the text: nothing of token i itself.
        before = F.pad(embedded[:, :-1], (0, 0, self.context, 0))
        places = F.normalize(self._split(self.read(self._windows(before))), dim=-1, eps=_TINY)
        queries = places * self.log_sharpness.exp()[:, None, None]
        values = self._split(self.value(embedded))
        queries, keys, values = (x.to(self.gain.dtype) for x in (queries, places, values))
        return InductionAttention(
            queries, keys, values, self.nothing, self.gain * TABLE_SCALE, self.out.weight * self._output_scale, ids
        )

    def _windows(self, tokens: Tensor) -> Tensor:
        """Every ``context`` tokens that stand side by side, [b, t + context - 1, e] to [b, t, context·e]."""
        return tokens.unfold(1, self.context, 1).transpose(2, 3).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """Tokens' h·size entries by head: [b, L, h·size] to [b, h, L, size]."""
        split: Tensor = x.unflatten(-1, (self.heads, self.size))
        return split.transpose(1, 2)
