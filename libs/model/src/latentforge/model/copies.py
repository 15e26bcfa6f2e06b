"""Boosts of the logits of tokens that stand in a text already."""

from typing import NamedTuple

import torch
from torch import Tensor


class Copies(NamedTuple):
    """What is added to rows of logits: of row r, ``boosts[r, j]`` to the logit of token ``ids[texts[r], j]``.

    A token that stands in a text several times gets the sum.

    Attributes:
        boosts: float [n, L].
        ids: of the texts' tokens, int64 [b, L].
        texts: which text each row belongs to, int64 [n].
    """

    boosts: Tensor
    ids: Tensor
    texts: Tensor

    def rows(self, picked: slice | Tensor) -> "Copies":
        """The same for some of the rows only."""
        return Copies(self.boosts[picked], self.ids, self.texts[picked])

    def add_to(self, logits: Tensor) -> Tensor:
        """Adds to logits [n, V], in place; gives them back."""
        return logits.scatter_add_(1, self.ids_of_rows(), self.boosts.to(logits.dtype))

    def gradient(self, of_logits: Tensor) -> Tensor:
        """The gradient of ``boosts``, out of that of the logits [n, V]."""
        return of_logits.gather(1, self.ids_of_rows()).to(self.boosts.dtype)

    def ids_of_rows(self) -> Tensor:
        """Whose logit each boost is for, int64 [n, L]."""
        if len(self.ids) == 1:
            return self.ids.expand(len(self.boosts), -1)
        return self.ids[self.texts]


def copies_of_texts(boosts: Tensor, ids: Tensor) -> Copies:
    """Boosts [b, L, L] of every token of texts, int64 [b, L], as rows: token after token, text after text."""
    texts = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    return Copies(boosts.flatten(0, 1), ids, texts)
