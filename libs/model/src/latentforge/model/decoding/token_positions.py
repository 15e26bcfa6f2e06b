"""A backbone that has a position for each token, behind the interface of one that has a position for each chunk."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentforge.model.decoding.backbone import PromptPiece, SlotBackbone


class TokenPositions:
    """Positions of chunks over a backbone's positions of tokens: a step is K of them, in one pass over the weights.

    Chunk position 0 is the start, the token position 0; chunk position t > 0 is chunk t - 1, whose K tokens have the
    token positions (t - 1)·K + 1 … t·K. The state of the last one is the chunk position's.

    Attributes:
        positions: those of tokens.
        lower: what the kept layer read at the chunk positions of the last step, float [n, h].
    """

    def __init__(self, positions: SlotBackbone, chunk_size: int) -> None:
        self.positions, self._k = positions, chunk_size
        self.lower = positions.kept

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
        self._num, self._rows = len(positions), rows
        self._borders = [PromptPiece(first_slot + row, positions[row], 1) for row in row_ids]
        hidden = self.read(self._of_stepping(inputs), self._borders, want_hidden=True)
        assert hidden is not None
        if self.positions.keeps:
            self.lower = self._of_all(self.lower)
        return self._of_all(hidden)

    def step_inside(self, inputs: Tensor, place: int, first_layer: int) -> Tensor:
        """One position of each text of the last step, ``place`` behind its chunk position, by the last layers alone.

        They see what was read up to the chunk position, and each other from there on. The next step reads the same
        positions by all layers, and so takes the place of what these leave in memory.

        Args:
            inputs: of layer ``first_layer``, float [n, h].
            place: 1 … K - 1, one after the other.
            first_layer: the first of the layers.

        Returns:
            Hidden states, float [n, h]; zeros for what does not step.
        """
        pieces = [PromptPiece(slot, first * self._k + place, 1) for slot, first, _ in self._borders]
        hidden = self.positions.read(self._of_stepping(inputs), pieces, want_hidden=True, first_layer=first_layer)
        assert hidden is not None
        return self._of_all(hidden)

    def _of_stepping(self, of_all: Tensor) -> Tensor:
        return of_all if len(self._borders) == self._num else of_all[self._rows]

    def _of_all(self, of_stepping: Tensor) -> Tensor:
        """With zeros for what does not step."""
        if len(self._borders) == self._num:
            return of_stepping
        return of_stepping.new_zeros(self._num, of_stepping.shape[1]).index_copy_(0, self._rows, of_stepping)

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
        if hidden is None:
            return None
        if self.positions.keeps:
            self.lower = self.positions.kept[lasts]
        return hidden[lasts]
