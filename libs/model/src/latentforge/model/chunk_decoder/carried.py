"""A GRU whose state is carried over the whole text: what the decoders that have one share."""

import torch
from torch import Tensor, nn

from latentforge.model.chunk_decoder.base import ChunkDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.layers import SwiGLU


class CarriedDecoder(ChunkDecoder):
    """With x the text's embedded tokens: g_i = GRU(x_0 … x_{i-1}), from ``start``; and blocks with a norm behind it.

    Attributes:
        start: g_0, float [num_layers, 1, width].
    """

    start: nn.Parameter

    def __init__(self, config: StudentConfig, gru_layers: int, written_from: int | None = None) -> None:
        """Makes them.

        Args:
            config: the student's.
            gru_layers: of the GRU.
            written_from: size of the state that corrections are made of; None is the GRU's.
        """
        decoder = config.chunk_decoder
        super().__init__(config, nn.Parameter(torch.zeros(gru_layers, 1, decoder.width)), written_from)
        self.gru = nn.GRU(config.embed_size, decoder.width, gru_layers, batch_first=True)
        self.blocks = nn.ModuleList([SwiGLU(decoder.width, 2 * decoder.width) for _ in range(decoder.num_blocks)])
        self.norm = nn.RMSNorm(decoder.width, eps=1e-6)

    def text_states(self, embedded: Tensor) -> Tensor:
        """g before each token of whole texts, float [b, L, width], of embedded tokens [b, L, e].

        The last token is not read.
        """
        first = self.start.repeat(1, len(embedded), 1)
        states = first[-1][:, None]
        if embedded.shape[1] > 1:
            states = torch.cat([states, self.gru(embedded[:, :-1], first)[0]], 1)
        return states

    def behind_blocks(self, states: Tensor) -> Tensor:
        """Maps [..., width] to [..., width], normalised."""
        for block in self.blocks:
            states = block(states)
        out: Tensor = self.norm(states)
        return out
