"""A chunk decoder whose state is carried over the whole text: a GRU that a slow transformer reads and steers.

A GRU that starts anew from each hidden state has to keep what that says over all that it reads before it may use it,
and the backbone sees raw chunks alone. Here the GRU is a language model by itself, and the transformer beside it has
one position for K of its steps: it reads the GRU's state at each border, and says something of its own to every token
of the next chunk.
"""

from torch import Tensor, nn

from latentforge.model.chunk_decoder.carried import CarriedDecoder
from latentforge.model.config import StudentConfig

_STEERING_STD = 0.02


class RecurrentDecoder(CarriedDecoder):
    """With x the text's embedded tokens, h_t the hidden state that predicts chunk t, and i = t·K + k:

        g_i = GRU(x_0 … x_{i-1}), from ``start``
        s_t,0 … s_t,K-1 = S·h_t + b
        state before token i = norm(blocks(g_i + s_t,k))

    To the backbone's input after chunk t-1, ``border`` · g_{t·K} is added, which has read chunks < t; positions of
    tokens, which pretrained layers know, are left as they are. So in training the GRU goes over the text once, then the
    transformer, then all tokens are one batch. Without backbone layers there is nothing to read or steer, and the
    decoder is a GRU language model.

    Attributes:
        border: maps g at a border to the backbone's width; None without layers, or where these read tokens.
        steer: S and b, from h to K·width; None without layers.
    """

    border: nn.Linear | None
    steer: nn.Linear | None

    def __init__(self, config: StudentConfig) -> None:
        decoder = config.chunk_decoder
        super().__init__(config, decoder.num_layers)
        self.border = self.steer = None
        if config.num_layers:
            if config.positions == "chunks":
                self.border = nn.Linear(decoder.width, config.hidden_size, bias=False)
            self.steer = nn.Linear(config.hidden_size, config.chunk_size * decoder.width)
            nn.init.normal_(self.steer.weight, std=_STEERING_STD)
            nn.init.zeros_(self.steer.bias)

    def steering(self, hidden: Tensor) -> Tensor | None:
        """s of hidden states [n, h], float [n, K, width]; None without layers."""
        if self.steer is None:
            return None
        steering: Tensor = self.steer(hidden).unflatten(-1, (self.chunk_size, -1))
        return steering

    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        """The state before each token, float [n, K, width].

        Args:
            hidden: float [n, h].
            read: g before each token of the chunk, float [n, K, width].
        """
        (states,) = read
        steering = self.steering(hidden)
        if steering is not None:
            states = states + steering
        return self.behind_blocks(states)
