"""What every chunk decoder is: states before each token, and a low-rank table that turns them into logits.

One hidden state predicts K tokens. Without a decoder they are independent given it, p(x | h) = Π_k p(x_k | h), and the
best cross-entropy is the sum of the marginals' entropies. With one it is Π_k p(x_k | x_<k, h): all that a token-level
model has, and with it exact cross-entropy, KL and log probabilities.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from latentforge.model.config import StudentConfig
from latentforge.model.correction_table import CorrectionTable
from latentforge.model.layers import output_scale


class ChunkDecoder(nn.Module, ABC):
    """Corrects the logits of token k of a chunk by a low-rank function of what came before it.

    Its state before token k gives ``U · W · state``, which is added to the logits of token k: these depend on the
    chunk's hidden state, earlier chunks and x_<k only. U is ``output``.

    What it reads of the text beside the hidden state is a tuple of tensors, whose first dimension is chunks: so every
    chunk of every text is an item of one batch, whether the decoder reads a window of tokens before it or carries a
    state over the whole text.
    """

    #: of the map from its states to corrections, by which optimizers know it
    map_name = "reduce"

    def __init__(self, config: StudentConfig, start: nn.Linear | nn.Parameter, written_from: int | None = None) -> None:
        """Makes what all have.

        Args:
            config: the student's.
            start: what its first state is, or is made by.
            written_from: size of the states that corrections are made of; None is the decoder's ``width``.
        """
        super().__init__()
        decoder = config.chunk_decoder
        self.chunk_size = config.chunk_size
        self.start = start
        self.add_module(self.map_name, nn.Linear(written_from or decoder.width, decoder.rank, bias=False))
        self.output = CorrectionTable(config)
        self._output_scale = output_scale(decoder.rank)

    def forward(self, hidden: Tensor, *read: Tensor) -> Tensor:
        """Corrections for every token of every chunk, teacher-forced.

        Args:
            hidden: backbone states that predict the chunks, float [n, h].
            read: what the decoder reads of the text, float [n, ...] each; see ``states`` of its kind.

        Returns:
            float [n, K, rank]; ``output`` maps them to logits.
        """
        return self._reduce(self.states(hidden, *read))

    @abstractmethod
    def states(self, hidden: Tensor, *read: Tensor) -> Tensor:
        """Its state before each token of the chunk, float [n, K, width]; arguments as in :meth:`forward`."""

    @property
    def map(self) -> nn.Linear:
        """W, from a state to a correction, before it is scaled."""
        found = self.get_submodule(self.map_name)
        assert isinstance(found, nn.Linear)
        return found

    def _reduce(self, states: Tensor) -> Tensor:
        reduced: Tensor = self.map(states) * self._output_scale
        return reduced
