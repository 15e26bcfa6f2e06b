"""Pointer logits: boosts of the logits of tokens that already stand in the text."""

from typing import NamedTuple

import torch
from torch import Tensor


class PointerLogits(NamedTuple):
    """What is added to the logits of n tokens, as in a pointer network (Vinyals et al., arXiv 1506.03134).

    The logit of token ``ids[texts[i], j]`` at position i is raised by ``boosts[i, j]``: the copy boost. A token that
    stands in a text several times gets the sum. Since what is boosted is known by its place in the text, only [n, L]
    numbers are kept and never [n, V].

    Attributes:
        boosts: float [n, L], or fewer columns where the rest is 0.
        ids: of the texts' tokens, int64 [b, L].
        texts: which text each position belongs to, int64 [n].
        whole: whether the n positions are all of the texts', text after text, and boost only tokens before their own.
    """

    boosts: Tensor
    ids: Tensor
    texts: Tensor
    whole: bool = False

    def select(self, picked: slice | Tensor) -> "PointerLogits":
        """The same for some of the positions only."""
        part = PointerLogits(self.boosts[picked], self.ids, self.texts[picked])
        if not self.whole or not isinstance(picked, slice) or picked.start is None:
            return part
        return part._without_what_follows(picked.start)

    def _without_what_follows(self, start: int) -> "PointerLogits":
        """Neighbouring positions from ``start`` on, without the tokens behind the last one, if they are of one text.

        Causality leaves only zeros there: on average half of the scatter's work is saved.
        """
        length, num_positions = self.ids.shape[1], len(self.boosts)
        text, first = divmod(start, length)
        end = first + num_positions
        if end > length:
            return self
        return PointerLogits(self.boosts[:, :end], self.ids[text : text + 1, :end], torch.zeros_like(self.texts))

    def add_to(self, logits: Tensor) -> Tensor:
        """Adds to logits [n, V], in place; gives them back."""
        # The scatter adds: ``logits[i, ids[i, j]] += boosts[i, j]`` for every j, so that repeated ids sum up.
        return logits.scatter_add_(1, self.boosted_ids(), self.boosts.to(logits.dtype))

    def gradient(self, of_logits: Tensor, out: Tensor) -> None:
        """Writes the gradient of ``boosts``, made of that of the logits [n, V], to ``out`` [n, L], which is 0."""
        # The transpose of the scatter is a gather: each boost went into one logit, and has its gradient.
        out[:, : self.boosts.shape[1]] = of_logits.gather(1, self.boosted_ids())

    def boosted_ids(self) -> Tensor:
        """Whose logit each boost is for, int64 [n, L]."""
        if len(self.ids) == 1:
            return self.ids.expand(len(self.boosts), -1)
        return self.ids[self.texts]


def pointer_logits_of_texts(boosts: Tensor, ids: Tensor) -> PointerLogits:
    """Boosts [b, L, L] of every token of texts, int64 [b, L], for tokens before it, as those of b·L positions."""
    texts = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    return PointerLogits(boosts.flatten(0, 1), ids, texts, whole=True)
