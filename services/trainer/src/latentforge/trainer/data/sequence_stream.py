"""Packed sequences one after another, in any order, without a copy of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentforge.text.packed import PackedData


class SequenceStream:
    """The tokens of sequences that follow one another.

    Args:
        data: holds the sequences.
        order: which of them, int64 [n]; None takes all as they are.
    """

    def __init__(self, data: PackedData, order: NDArray[np.int64] | None = None) -> None:
        self._data, self._order = data, order

    def __len__(self) -> int:
        """Tokens."""
        num_sequences = len(self._data) if self._order is None else len(self._order)
        return num_sequences * self._data.meta.sequence_length

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The ids at some places, in their shape."""
        if self._order is not None:
            length = self._data.meta.sequence_length
            number, at = np.divmod(places, length)
            places = self._order[number] * length + at
        # Of a memory map, which reads no other place.
        found: NDArray[Any] = self._data.tokens[places]
        return found
