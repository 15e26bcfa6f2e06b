"""The causal decoder inside a chunk: what makes K rows of logits a distribution over chunks."""

import torch
from torch import Tensor, nn

from latentforge.model.config import StudentConfig
from latentforge.model.layers import TABLE_SCALE


class ChunkDecoder(nn.Module):
    """A GRU, started from the backbone's hidden state, that corrects row k by a low-rank function of what came before.

    It reads the previous chunk's tokens (where ``read_previous``), then this chunk's as they become known. The state
    before token k gives ``U · W · state + bias``, which is added to row k of the logits: row k depends on x_<k only.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width, rank = config.chunk_decoder.width, config.chunk_decoder.rank
        self.chunk_size = config.chunk_size
        self.read_previous = config.chunk_decoder.read_previous
        self.start = nn.Linear(config.hidden_size, width)
        self.gru = nn.GRU(config.embed_size, width, batch_first=True)
        self.reduce = nn.Linear(width, rank, bias=False)
        self.output = nn.Embedding(config.vocab_size, rank)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.normal_(self.output.weight, std=0.02 / TABLE_SCALE)

    @torch.no_grad()
    def set_token_counts(self, counts: Tensor) -> None:
        """Starts the bias of the logits at the log frequencies of the tokens in the training data, int64 [V].

        A fresh student then begins at the unigram model instead of spending its first steps on learning it.
        """
        log_frequencies = (counts + 1).float().log()
        self.bias.copy_(log_frequencies - log_frequencies.mean())

    def forward(self, hidden: Tensor, previous: Tensor, current: Tensor) -> Tensor:
        """Corrections for every row of every chunk, teacher-forced.

        Args:
            hidden: backbone states that predict the chunks, float [n, h].
            previous: embedded tokens of the chunk before, float [n, K, e]; not read unless ``read_previous``.
            current: embedded tokens of the chunk itself, float [n, K, e]; the last one is not read.

        Returns:
            float [n, K, rank]; ``output.weight`` [V, rank] maps them to corrections of logits, ``bias`` [V] is added.
        """
        state = self.initial_state(hidden)
        if self.read_previous:
            states, _ = self.gru(torch.cat([previous, current[:, :-1]], 1), state[None])
            states = states[:, self.chunk_size - 1 :]
        elif self.chunk_size == 1:
            states = state[:, None]
        else:
            states, _ = self.gru(current[:, :-1], state[None])
            states = torch.cat([state[:, None], states], 1)
        return self.correction(states)

    def correction(self, states: Tensor) -> Tensor:
        """Maps GRU states [..., width] to [..., rank], to be multiplied by ``output.weight``."""
        reduced: Tensor = self.reduce(states) * TABLE_SCALE
        return reduced

    def initial_state(self, hidden: Tensor) -> Tensor:
        """Maps [n, h] to the GRU's first state [n, width]."""
        return torch.tanh(self.start(hidden))

    def first_state(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """The state before a chunk's first token, [n, width], from hidden [n, h] and previous [n, K, e]."""
        state = self.initial_state(hidden)
        if not self.read_previous:
            return state
        _, last = self.gru(previous, state[None])
        out: Tensor = last[0]
        return out

    def next_state(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Reads one more token: state [n, width] and its embedding [n, e] give [n, width]."""
        return torch.gru_cell(embedded, state, *self._gru_weights())

    def _gru_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = self.gru.all_weights[0]
        return w_ih, w_hh, b_ih, b_hh
