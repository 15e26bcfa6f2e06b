"""The output table of the chunk decoder's corrections: of all ids, or of the most frequent ones alone."""

import torch
from torch import Tensor, nn

from latentforge.model.config import StudentConfig
from latentforge.model.layers import init_output_table


class CorrectionTable(nn.Embedding):
    """Maps corrections [n, rank] to logits: ids that it has a vector for get ``vector · correction``, others nothing.

    It is read whole for every token that is written, at a large vocabulary most of a token's time. A token that hardly
    ever occurs has a vector that has hardly learnt: without those the others' can be longer at the same cost, as in an
    adaptive softmax (Grave et al., "Efficient softmax approximation for GPUs", 2017). Nor does the rest need one vector
    together: since the softmax does not see a shift of all logits, the frequent ids move against it.

    Attributes:
        ids: whose vectors it has, ascending, int64 [frequent_ids]; None where it has all.
    """

    ids: Tensor | None

    def __init__(self, config: StudentConfig) -> None:
        """Makes a table that starts near zero, of the first ids until :meth:`set_token_counts` says which."""
        frequent = config.chunk_decoder.frequent_ids
        super().__init__(frequent or config.vocab_size, config.chunk_decoder.rank)
        self.vocab_size = config.vocab_size
        self.register_buffer("ids", torch.arange(frequent) if frequent else None)
        init_output_table(self)

    def set_token_counts(self, counts: Tensor) -> None:
        """Takes the ids that stand most often in the training data, int64 [V], of equals the smaller."""
        if self.ids is not None:
            self.ids.copy_(counts.argsort(descending=True, stable=True)[: len(self.ids)].sort().values)

    def has_sound_ids(self) -> bool:
        """Whether the ids are ascending ones of the vocabulary, as a file may not have them."""
        if self.ids is None:
            return True
        inside = bool((self.ids[0] >= 0) & (self.ids[-1] < self.vocab_size))
        return inside and bool((self.ids.diff() > 0).all())

    def whole(self) -> Tensor:
        """A vector for every id, float [V, rank], zeros where it has none; differentiable in the weight."""
        if self.ids is None:
            return self.weight
        return self.weight.new_zeros(self.vocab_size, self.embedding_dim).index_copy(0, self.ids, self.weight)

    def add_to(self, logits: Tensor, corrections: Tensor) -> Tensor:
        """Adds what corrections [b, rank] say to logits [b, V], in place, and gives them."""
        if self.ids is None:
            return logits.addmm_(corrections, self.weight.T)
        return logits.scatter_add_(1, self.ids.expand(len(logits), -1), corrections @ self.weight.T)
