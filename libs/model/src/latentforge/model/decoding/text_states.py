"""The states of a GRU that is carried over texts, behind texts in slots."""

import torch
from torch import Tensor

from latentforge.model.chunk_decoder.carried import CarriedDecoder


class SlotStates:
    """What the GRU of a :class:`CarriedDecoder` has read of ``num_slots`` texts.

    Attributes:
        memory: its state behind each text, float [num_layers, num_slots, width].
    """

    def __init__(self, decoder: CarriedDecoder, num_slots: int) -> None:
        # The list of weights is made anew at each access, and looks every weight up by its name.
        self._gru, self._weights = decoder.gru, decoder.gru.all_weights
        self._start = decoder.start.detach()
        self.memory = self._start.repeat(1, num_slots, 1)
        self._layers: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Of the memory."""
        return self.memory.nbytes

    def clear(self, slot: int) -> None:
        """Forgets what a slot's last text left: a text begins there."""
        self.memory[:, slot] = self._start[:, 0]

    def move(self, source: int, target: int) -> None:
        """Takes a text to another slot."""
        self.memory[:, target] = self.memory[:, source]

    def behind(self, slot: int) -> Tensor:
        """The states behind a text, float [num_layers, width], to go back to."""
        return self.memory[:, slot].clone()

    def go_back(self, slot: int, states: Tensor) -> None:
        """Forgets what was read of a text since its ``states``."""
        self.memory[:, slot] = states

    def read(self, slot: int, embedded: Tensor) -> Tensor:
        """Reads a text's next tokens, embedded [t, e]; gives the states before each of them, float [t, width]."""
        before = self.memory[:, slot : slot + 1].clone()
        states, after = self._gru(embedded[None], before)
        self.memory[:, slot : slot + 1] = after
        return torch.cat([before[-1], states[0, :-1]])

    def begin(self, first_slot: int, num: int) -> None:
        """Begins a chunk of the ``num`` texts in the slots from ``first_slot`` on."""
        self._slots = self.memory[:, first_slot : first_slot + num]
        self._layers = list(self._slots)

    @property
    def output(self) -> Tensor:
        """The state of the last layer before the next token, float [n, width]."""
        return self._layers[-1]

    def read_token(self, embedded: Tensor) -> None:
        """Reads the chunk's next token, embedded [n, e]."""
        # One step of nn.GRU, layer by layer: a layer's new state is what the next one reads.
        for index, weights in enumerate(self._weights):
            embedded = self._layers[index] = torch.gru_cell(embedded, self._layers[index], *weights)

    def end(self, rows: Tensor) -> None:
        """Ends the chunk: keeps what was read of some of the texts, int64 [r]."""
        for kept, layer in zip(self._slots, self._layers, strict=True):
            kept[rows] = layer[rows]
