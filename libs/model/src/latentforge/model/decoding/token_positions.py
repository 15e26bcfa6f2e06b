"""A backbone that has a position for each token, behind the interface of one that has a position for each chunk."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.decoding.backbone import PromptPiece, SlotBackbone


class TokenPositions:
    """Positions of chunks over a backbone's positions of tokens: a step is K of them, in one pass over the weights.

    Chunk position 0 is the start, the token position 0; chunk position t > 0 is chunk t - 1, whose K tokens have the
    token positions (t - 1)·K + 1 … t·K. The state of the last one is the chunk position's.
    """

    def __init__(self, positions: SlotBackbone, chunk_size: int) -> None:
        """``positions``: those of tokens."""
        self.positions, self._k = positions, chunk_size

    @property
    def num_bytes(self) -> int:
        """Of the memory."""
        return self.positions.num_bytes

    def clear(self, slot: int) -> None:
        """As of :class:`SlotBackbone`."""
        self.positions.clear(slot)

    def move(self, source: int, target: int) -> None:
        """As of :class:`SlotBackbone`."""
        self.positions.move(source, target)

    def step(
        self, inputs: Tensor, first_slot: int, positions: Sequence[int], rows: Tensor, row_ids: Sequence[int]
    ) -> Tensor:
        """As of :class:`SlotBackbone`; inputs are [n, K, h], and what does not step has states of zeros."""
        pieces = [PromptPiece(first_slot + row, positions[row], 1) for row in row_ids]
        stepping = inputs if len(row_ids) == len(inputs) else inputs[rows]
        hidden = self.read(stepping, pieces, want_hidden=True)
        assert hidden is not None
        if stepping is inputs:
            return hidden
        return hidden.new_zeros(len(inputs), hidden.shape[1]).index_copy_(0, rows, hidden)

    def read(self, inputs: Tensor, pieces: Sequence[PromptPiece], *, want_hidden: bool = False) -> Tensor | None:
        """As of :class:`SlotBackbone`; inputs are [n, K, h]. Of the start only the last of its K is read."""
        k = self._k
        of_tokens, parts, lasts = [], [], []
        row = end = 0
        for slot, first, length in pieces:
            known = inputs[row : row + length].flatten(0, 1)
            row += length
            skipped = 0 if first else k - 1
            parts.append(known[skipped:])
            of_tokens.append(PromptPiece(slot, max(0, (first - 1) * k + 1), length * k - skipped))
            lasts += [end + i * k - skipped - 1 for i in range(1, length + 1)]
            end += length * k - skipped
        hidden = self.positions.read(torch.cat(parts), of_tokens, want_hidden=want_hidden)
        return None if hidden is None else hidden[lasts]
