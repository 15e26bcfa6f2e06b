"""A chunk decoder's state, token by token, of many texts at once."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.chunk_decoder.recurrent import RecurrentDecoder
from latentforge.model.chunk_decoder.split import SplitDecoder
from latentforge.model.chunk_decoder.windowed import GruDecoder
from latentforge.model.decoding.fusion import fused_swiglu
from latentforge.model.decoding.text_states import SlotStates
from latentforge.model.decoding.token_positions import TokenPositions
from latentforge.model.student import Student


class ChunkStates(ABC):
    """States of n texts' chunks, from :meth:`begin` on, token by token."""

    @abstractmethod
    def begin(self, hidden: Tensor, previous: Tensor) -> None:
        """Before the first token, from hidden [n, h] and the window's embedded tokens [n, W·K, e]."""

    @abstractmethod
    def read(self, embedded: Tensor) -> None:
        """Reads one more token, embedded [n, e]."""

    @abstractmethod
    def output(self) -> Tensor:
        """What the next token's correction is made of, float [n, width]; asked for at most once for each token.

        Some make it of their state at a price, which a token that is known need not pay.
        """


class _GruStates(ChunkStates):
    def __init__(self, decoder: GruDecoder) -> None:
        # The list is made anew at each access, and looks every weight up by its name.
        self._decoder, self._weights = decoder, decoder.gru.all_weights
        self._layers: list[Tensor] = []

    def begin(self, hidden: Tensor, previous: Tensor) -> None:
        self._layers = list(self._decoder.first_state(hidden, previous))

    def read(self, embedded: Tensor) -> None:
        # One step of nn.GRU, layer by layer: a layer's new state is what the next one reads.
        for index, weights in enumerate(self._weights):
            embedded = self._layers[index] = torch.gru_cell(embedded, self._layers[index], *weights)

    def output(self) -> Tensor:
        return self._layers[-1]


class _DecoderStates(ChunkStates):
    """Any other decoder's, by its own methods."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._state: Any = None

    def begin(self, hidden: Tensor, previous: Tensor) -> None:
        self._state = self._decoder.first_state(hidden, previous)

    def read(self, embedded: Tensor) -> None:
        self._state = self._decoder.next_state(self._state, embedded)

    def output(self) -> Tensor:
        output: Tensor = self._state.output
        return output


class _SteeredStates(ChunkStates):
    """A recurrent decoder's: what its GRU has read of the texts is the slots'."""

    def __init__(self, decoder: RecurrentDecoder, slots: SlotStates, by_column: bool) -> None:
        blocks: Any = decoder.blocks
        self._decoder, self._slots = decoder, slots
        self._blocks = [fused_swiglu(block, by_column=by_column) for block in blocks]
        self._norm, self._eps = decoder.norm.weight.detach(), decoder.norm.eps

    def begin(self, hidden: Tensor, previous: Tensor) -> None:
        steering = self._decoder.steering(hidden)
        self._steering = [] if steering is None else list(steering.unbind(1))
        self._place = 0

    def read(self, embedded: Tensor) -> None:
        self._slots.read_token(embedded)
        self._place += 1

    def output(self) -> Tensor:
        state = self._slots.output
        if self._steering:
            state = state + self._steering[self._place]
        for block in self._blocks:
            state = block(state)
        return F.rms_norm(state, self._norm.shape, self._norm, self._eps)


class _SplitStates(ChunkStates):
    """A split decoder's: the backbone's last layers, at every token."""

    def __init__(
        self, decoder: SplitDecoder, input_map: nn.Linear, slots: SlotStates, positions: TokenPositions, num_first: int
    ) -> None:
        self._decoder, self._input_map, self._slots = decoder, input_map, slots
        self._positions, self._num_first = positions, num_first

    def begin(self, hidden: Tensor, previous: Tensor) -> None:
        self._steering = self._decoder.steering(self._positions.lower).unbind(1)
        self._place, self._states = 0, hidden

    def read(self, embedded: Tensor) -> None:
        self._slots.read_token(embedded)
        steering = self._steering[self._place]
        self._place += 1
        stand_ins = self._decoder.stand_ins(self._input_map(embedded), self._slots.output, steering)
        # Those of later tokens look this one up, so it is made of known ones, too.
        self._states = self._positions.step_inside(stand_ins, self._place, self._num_first)

    def output(self) -> Tensor:
        return self._states


def chunk_states(
    student: Student, slots: SlotStates | None, positions: TokenPositions | None, *, by_column: bool
) -> ChunkStates:
    """The states of a student's decoder, by its kind.

    Args:
        student: whose; it has a decoder.
        slots: of the texts; None for a decoder that starts anew at each chunk.
        positions: of the backbone; None of one with positions of chunks.
        by_column: as in :func:`fused_weight`.
    """
    decoder = student.chunk_decoder
    assert decoder is not None
    if isinstance(decoder, SplitDecoder):
        assert slots is not None
        assert positions is not None
        num_first = student.config.num_layers - decoder.num_last
        return _SplitStates(decoder, student.input_map, slots, positions, num_first)
    if isinstance(decoder, RecurrentDecoder):
        assert slots is not None
        return _SteeredStates(decoder, slots, by_column)
    return _GruStates(decoder) if isinstance(decoder, GruDecoder) else _DecoderStates(decoder)
