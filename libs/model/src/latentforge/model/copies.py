"""Boosts of the logits of tokens that stand in a text already."""

from typing import NamedTuple

import torch
from torch import Tensor


class Copies(NamedTuple):
    """What is added to rows of logits: of row r, ``boosts[r, j]`` to the logit of token ``ids[texts[r], j]``.

    A token that stands in a text several times gets the sum.

    Attributes:
        boosts: float [n, L], or fewer columns where the rest is 0.
        ids: of the texts' tokens, int64 [b, L].
        texts: which text each row belongs to, int64 [n].
        whole: whether the rows are those of all tokens, text after text, and call only for what stands before theirs.
    """

    boosts: Tensor
    ids: Tensor
    texts: Tensor
    whole: bool = False

    def rows(self, picked: slice | Tensor) -> "Copies":
        """The same for some of the rows only."""
        part = Copies(self.boosts[picked], self.ids, self.texts[picked])
        if not self.whole or not isinstance(picked, slice) or picked.start is None:
            return part
        return part._without_what_follows(picked.start)

    def _without_what_follows(self, start: int) -> "Copies":
        """Neighbouring rows from ``start`` on, without the tokens behind the last one, if they are of one text."""
        length, num_rows = self.ids.shape[1], len(self.boosts)
        text, first = divmod(start, length)
        end = first + num_rows
        if end > length:
            return self
        return Copies(self.boosts[:, :end], self.ids[text : text + 1, :end], torch.zeros_like(self.texts))

    def add_to(self, logits: Tensor) -> Tensor:
        """Adds to logits [n, V], in place; gives them back."""
        return logits.scatter_add_(1, self.ids_of_rows(), self.boosts.to(logits.dtype))

    def gradient(self, of_logits: Tensor, out: Tensor) -> None:
        """Writes the gradient of ``boosts``, made of that of the logits [n, V], to ``out`` [n, L], which is 0."""
        out[:, : self.boosts.shape[1]] = of_logits.gather(1, self.ids_of_rows())

    def ids_of_rows(self) -> Tensor:
        """Whose logit each boost is for, int64 [n, L]."""
        if len(self.ids) == 1:
            return self.ids.expand(len(self.boosts), -1)
        return self.ids[self.texts]


def copies_of_texts(boosts: Tensor, ids: Tensor) -> Copies:
    """Boosts [b, L, L] of every token of texts, int64 [b, L], for tokens before it, as rows."""
    texts = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    return Copies(boosts.flatten(0, 1), ids, texts, whole=True)
