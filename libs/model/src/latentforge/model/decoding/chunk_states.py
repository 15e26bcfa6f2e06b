"""A chunk decoder's state, token by token, of many texts at once."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from latentforge.model.chunk_decoder import ChunkDecoder, GruDecoder


class ChunkStates(ABC):
    """States of n texts' chunks; :meth:`begin` gives that before the first token, :meth:`read` the next ones'."""

    @abstractmethod
    def begin(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """From hidden [n, h] and the window's embedded tokens [n, W·K, e], the state's output, float [n, width]."""

    @abstractmethod
    def read(self, embedded: Tensor) -> Tensor:
        """The state's output behind one more token, embedded [n, e]."""


class _GruStates(ChunkStates):
    def __init__(self, decoder: GruDecoder) -> None:
        # The list is made anew at each access, and looks every weight up by its name.
        self._decoder, self._weights = decoder, decoder.gru.all_weights
        self._layers: list[Tensor] = []

    def begin(self, hidden: Tensor, previous: Tensor) -> Tensor:
        self._layers = list(self._decoder.first_state(hidden, previous))
        return self._layers[-1]

    def read(self, embedded: Tensor) -> Tensor:
        # One step of nn.GRU, layer by layer: a layer's new state is what the next one reads.
        for index, weights in enumerate(self._weights):
            embedded = self._layers[index] = torch.gru_cell(embedded, self._layers[index], *weights)
        return embedded


class _DecoderStates(ChunkStates):
    """Any other decoder's, by its own methods."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._state: Any = None

    def begin(self, hidden: Tensor, previous: Tensor) -> Tensor:
        self._state = self._decoder.first_state(hidden, previous)
        output: Tensor = self._state.output
        return output

    def read(self, embedded: Tensor) -> Tensor:
        self._state = self._decoder.next_state(self._state, embedded)
        output: Tensor = self._state.output
        return output


def chunk_states(decoder: ChunkDecoder) -> ChunkStates:
    """The states of a decoder's kind."""
    return _GruStates(decoder) if isinstance(decoder, GruDecoder) else _DecoderStates(decoder)
