"""Chunk decoders that start anew at each chunk: from its hidden state, over a window of tokens before it."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentforge.model.chunk_decoder.base import ChunkDecoder
from latentforge.model.config import StudentConfig
from latentforge.model.layers import SwiGLU


class WindowDecoder(ChunkDecoder):
    """Starts from the backbone's hidden state, reads the tokens of the chunks in its window, then this chunk's own."""

    start: nn.Linear

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config, nn.Linear(config.hidden_size, config.chunk_decoder.width))

    @abstractmethod
    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        """Its state before each token of the chunk, float [n, K, width].

        Args:
            hidden: float [n, h].
            read: the embedded tokens of the window's chunks, float [n, W·K, e], and those of the chunk itself,
                float [n, K, e], of which the last one is not read.
        """

    @abstractmethod
    def first_state(self, hidden: Tensor, previous: Tensor) -> Any:
        """The state before a chunk's first token, from hidden [n, h] and the window's tokens [n, W·K, e]."""

    @abstractmethod
    def next_state(self, state: Any, embedded: Tensor) -> Any:
        """The state after one more token, from its embedding [n, e]."""


class GruDecoder(WindowDecoder):
    """Its state is that of a GRU, float [num_layers, n, width]."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        decoder = config.chunk_decoder
        self.gru = nn.GRU(config.embed_size, decoder.width, decoder.num_layers, batch_first=True)

    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        previous, current = read
        # What it has read behind W·K + k tokens is its state before token k: the chunk's last token is not read, and of
        # the 1 + W·K + K - 1 states the last K are the chunk's.
        first = self._start(hidden)
        states = first[-1][:, None]
        tokens = torch.cat([previous, current[:, :-1]], 1)
        if tokens.shape[1]:
            states = torch.cat([states, self.gru(tokens, first)[0]], 1)
        return states[:, -self.chunk_size :]

    def first_state(self, hidden: Tensor, previous: Tensor) -> Tensor:
        state = self._start(hidden)
        if previous.shape[1]:
            state = self.gru(previous, state)[1]
        return state

    def next_state(self, state: Tensor, embedded: Tensor) -> Tensor:
        # One step of nn.GRU, layer by layer: a layer's new state is what the next one reads.
        layers = []
        for layer, weights in zip(state, self.gru.all_weights, strict=True):
            embedded = torch.gru_cell(embedded, layer, *weights)
            layers.append(embedded)
        return torch.stack(layers)

    def _start(self, hidden: Tensor) -> Tensor:
        first: Tensor = torch.tanh(self.start(hidden))
        return first.expand(self.gru.num_layers, -1, -1).contiguous()


class TransformerState(NamedTuple):
    """``output`` [n, width] of the last position; each layer's ``keys`` and ``values``, [n, heads, positions, size]."""

    output: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class TransformerDecoder(WindowDecoder):
    """A causal transformer with learned positions over the window's tokens, the hidden state and the chunk's tokens."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        decoder = config.chunk_decoder
        self.read = nn.Linear(config.embed_size, decoder.width, bias=False)
        self.positions = nn.Parameter(torch.zeros((decoder.window + 1) * config.chunk_size, decoder.width))
        self.layers = nn.ModuleList([_Layer(decoder.width, decoder.num_heads) for _ in range(decoder.num_layers)])
        self.norm = nn.RMSNorm(decoder.width, eps=1e-6)
        nn.init.normal_(self.positions, std=0.02)

    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        previous, current = read
        # The window's W·K tokens, the hidden state, the chunk's first K - 1: the output at position W·K + k, where the
        # mask lets it see all up to itself, is the state before token k.
        x = (
            torch.cat([self.read(previous), self.start(hidden)[:, None], self.read(current[:, :-1])], 1)
            + self.positions
        )
        for layer in self.layers:
            x, _, _ = layer(x, None, None)
        out: Tensor = self.norm(x[:, previous.shape[1] :])
        return out

    def first_state(self, hidden: Tensor, previous: Tensor) -> TransformerState:
        x = torch.cat([self.read(previous), self.start(hidden)[:, None]], 1) + self.positions[: previous.shape[1] + 1]
        return self._advance(x, [None] * len(self.layers), [None] * len(self.layers))

    def next_state(self, state: TransformerState, embedded: Tensor) -> TransformerState:
        x = self.read(embedded)[:, None] + self.positions[state.keys[0].shape[2]]
        return self._advance(x, state.keys, state.values)

    def _advance(self, x: Tensor, keys: list[Any], values: list[Any]) -> TransformerState:
        new_keys, new_values = [], []
        for layer, k, v in zip(self.layers, keys, values, strict=True):
            x, k, v = layer(x, k, v)
            new_keys.append(k)
            new_values.append(v)
        return TransformerState(self.norm(x[:, -1]), new_keys, new_values)


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width, 2 * width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Maps x [n, s, width] that follows cached positions; gives it with all keys and values."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        # Several positions come only where nothing is cached, with a triangle as their mask. Behind a cache comes one
        # position at a time, which sees everything: is_causal would give it the first key alone.
        first = keys is None
        k = k if keys is None else torch.cat([keys, k], 2)
        v = v if values is None else torch.cat([values, v], 2)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=first)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return self.mlp(x), k, v
