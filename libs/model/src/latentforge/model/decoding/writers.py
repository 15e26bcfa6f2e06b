"""What stands around the backbone: a model's inputs, and the logits of a chunk's tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.chunk_decoder.windowed import WindowDecoder
from latentforge.model.decoding.chunk_states import ChunkStates, chunk_states
from latentforge.model.decoding.fusion import fused_swiglu
from latentforge.model.decoding.induction import FoundTokens
from latentforge.model.decoding.text_states import SlotStates
from latentforge.model.decoding.token_positions import TokenPositions
from latentforge.model.heads import EnergyHead
from latentforge.model.latent_model import LatentModel
from latentforge.model.layers import output_scale
from latentforge.model.token_level import TokenLevelModel


class ChunkWriter(ABC):
    """The logits of the tokens of n texts' chunks, one after the other.

    Attributes:
        window: tokens before a chunk that it reads beside the backbone's.
        table: the token embeddings, float [V, e].
        start: the backbone's input at the beginning of a text, float [h]; [0] without a backbone, as :meth:`inputs`.
            To one that reads tokens it is all K of its chunk.
        noise_size: uniform numbers that a chunk takes.
    """

    window: int
    table: Tensor
    start: Tensor
    noise_size: int = 0

    @abstractmethod
    def inputs(self, embedded: Tensor, borders: Tensor | None) -> Tensor:
        """The backbone's inputs, float [n, h] in memory of their own; [n, K, h] to one that reads tokens.

        Args:
            embedded: chunks, float [n, K, e].
            borders: a recurrent decoder's states behind them, float [n, width]; None of others.
        """

    @abstractmethod
    def begin(self, hidden: Tensor, previous: Tensor, noise: Tensor | None) -> None:
        """Begins the chunks that hidden states [n, h] predict.

        Args:
            hidden: float [n, h].
            previous: the window's embedded tokens, float [n, window, e].
            noise: uniform from 0 to 1, float [n, noise_size]; None where it takes none.
        """

    @abstractmethod
    def logits(self, k: int, found: FoundTokens | None) -> Tensor:
        """Logits of token k, float [n, V], which may be changed; -inf for the pad."""

    @abstractmethod
    def read(self, embedded: Tensor) -> None:
        """Reads the chunk's next token, embedded [n, e]."""

    @abstractmethod
    def teacher_forced(
        self, hidden: Tensor, read: Sequence[Tensor], noise: Tensor | None, found: FoundTokens | None
    ) -> Tensor:
        """Logits of all tokens of n chunks that are known, float [n·K, V]; -inf for the pad.

        Args:
            hidden, noise: as for :meth:`begin`.
            read: what the chunk decoder reads of them, see :meth:`Student.decoder_reads`, float [n, ...] each.
            found: what is found before each of the n·K tokens.
        """


class LatentWriter(ChunkWriter):
    """Of a latent student."""

    def __init__(
        self,
        model: LatentModel,
        num_slots: int,
        states: SlotStates | None,
        positions: TokenPositions | None,
        found_map: Tensor | None,
        *,
        by_column: bool = False,
    ) -> None:
        """Makes what writes up to so many texts.

        Args:
            model: of which.
            num_slots: how many.
            states: of a decoder whose GRU is carried over the text; None of others.
            positions: of a backbone with positions of tokens; None of others.
            found_map: the induction memory's ``out``.
            by_column: as in :func:`fused_weight`.
        """
        student, config = model.student, model.student.config
        self._model, self._student, self._k = model, student, config.chunk_size
        self.table = student.embedding.weight.detach()
        has_backbone = student.backbone is not None
        self.start = student.start_inputs(1).detach()[0, 0] if has_backbone else self.table.new_empty(0)
        self.window = config.chunk_decoder.window * self._k if isinstance(student.chunk_decoder, WindowDecoder) else 0
        self._head = student.head if model.writes_from_latents else None
        self.noise_size = self._head.noise_size if isinstance(self._head, EnergyHead) else 0
        self._output_weight, self._bias = model.output_weight.detach(), _without_pad(student.bias, config.pad_id)
        size = num_slots * self._k, config.vocab_size
        self._buffer = torch.empty(size, dtype=self._bias.dtype, device=self._bias.device)
        self._features = _FusedDecoder(model.autoencoder, by_column) if model.writes_from_latents else None
        self._states: ChunkStates | None = None
        if student.chunk_decoder is not None:
            self._states = chunk_states(student, states, positions, by_column=by_column)
            reduce = student.chunk_decoder.map.weight.detach() * output_scale(config.chunk_decoder.rank)
            # The state and what the heads found are mapped to corrections as one vector.
            self._correct = reduce if found_map is None else torch.cat([reduce, found_map], 1)
            self._corrections = student.chunk_decoder.output

    def inputs(self, embedded: Tensor, borders: Tensor | None) -> Tensor:
        if self._student.backbone is None:
            return embedded.new_empty(len(embedded), 0)
        return self._student.chunk_inputs(embedded, borders)

    def begin(self, hidden: Tensor, previous: Tensor, noise: Tensor | None) -> None:
        self._rows = self._buffer[: self._k * len(hidden)].view(self._k, len(hidden), -1).unbind()
        if self._output_weight.shape[1]:
            # Token after token: a token's logits of all texts lie side by side.
            latents = self._latents(hidden, noise)
            if self._features is not None:
                features = self._features(latents)
            else:
                features = self._model.logit_features(hidden, latents).transpose(0, 1).flatten(0, 1)
            torch.addmm(self._bias, features, self._output_weight.T, out=self._buffer[: len(features)])
        if self._states is not None:
            self._states.begin(hidden, previous)

    def logits(self, k: int, found: FoundTokens | None) -> Tensor:
        logits = self._rows[k]
        if not self._output_weight.shape[1]:
            # Of tokens that are known nobody wants any.
            logits.copy_(self._bias)
        if self._states is None:
            return logits
        return self._corrected(logits, self._states.output(), found)

    def read(self, embedded: Tensor) -> None:
        if self._states is not None:
            self._states.read(embedded)

    def teacher_forced(
        self, hidden: Tensor, read: Sequence[Tensor], noise: Tensor | None, found: FoundTokens | None
    ) -> Tensor:
        features = self._model.logit_features(hidden, self._latents(hidden, noise)).flatten(0, 1)
        logits = torch.addmm(self._bias, features, self._output_weight.T)
        decoder = self._student.chunk_decoder
        if decoder is None:
            return logits
        states = decoder.states(hidden, *read).flatten(0, 1)
        return self._corrected(logits, states, found)

    def _corrected(self, logits: Tensor, states: Tensor, found: FoundTokens | None) -> Tensor:
        if found is None:
            return self._corrections.add_to(logits, F.linear(states, self._correct))
        correction = F.linear(torch.cat([states, found.values], 1), self._correct)
        return self._corrections.add_to(logits, correction).scatter_add_(1, found.ids, found.boosts)

    def _latents(self, hidden: Tensor, noise: Tensor | None) -> Tensor:
        if self._head is None:
            return hidden.new_empty(0)
        if isinstance(self._head, EnergyHead):
            assert noise is not None
            return self._head.from_noise(hidden, noise)
        latents: Tensor = self._head(hidden)[0]
        return latents


class _FusedDecoder:
    """An autoencoder's decoder, of latents [n, D] to features [K·n, w], token after token."""

    def __init__(self, autoencoder: Autoencoder, by_column: bool) -> None:
        self._decoder = decoder = autoencoder.decoder
        self._decode_chunk = fused_swiglu(decoder.decode_chunk, by_column=by_column)
        self._decode_tokens = fused_swiglu(decoder.decode_tokens, by_column=by_column)

    def __call__(self, latents: Tensor) -> Tensor:
        decoder = self._decoder
        x = decoder.expand(self._decode_chunk(decoder.from_latent(latents)))
        tokens = x.unflatten(1, decoder.slots).transpose(0, 1).flatten(0, 1)
        return self._decode_tokens(tokens).mul_(decoder.log_scale.exp())


class TokenWriter(ChunkWriter):
    """Of a token-level student, whose chunk is one token."""

    window = 0

    def __init__(self, model: TokenLevelModel, found_map: Tensor | None) -> None:
        config = model.config
        self._model, self.table, self.start = model, model.embedding.weight.detach(), model.start.detach()
        self._table, self._bias = model.output_table.weight.detach(), _without_pad(model.bias, config.pad_id)
        self._scale, self._found_map = output_scale(config.output_width), found_map
        self._output_map = None if model.output_map is None else model.output_map.weight.detach() * self._scale

    def inputs(self, embedded: Tensor, borders: Tensor | None) -> Tensor:
        if self._model.input_map is None:
            return embedded[:, 0].clone()
        return self._model.inputs_of(embedded[:, 0])

    def begin(self, hidden: Tensor, previous: Tensor, noise: Tensor | None) -> None:
        self._hidden = hidden

    def logits(self, k: int, found: FoundTokens | None) -> Tensor:
        return self._logits(self._hidden, found)

    def teacher_forced(
        self, hidden: Tensor, read: Sequence[Tensor], noise: Tensor | None, found: FoundTokens | None
    ) -> Tensor:
        return self._logits(hidden, found)

    def _logits(self, hidden: Tensor, found: FoundTokens | None) -> Tensor:
        inputs = hidden * self._scale if self._output_map is None else F.linear(hidden, self._output_map)
        if found is None or self._found_map is None:
            return torch.addmm(self._bias, inputs, self._table.T)
        inputs = torch.addmm(inputs, found.values, self._found_map.T)
        return torch.addmm(self._bias, inputs, self._table.T).scatter_add_(1, found.ids, found.boosts)

    def read(self, embedded: Tensor) -> None:
        """Nothing is left to write in its chunk."""


def _without_pad(bias: Tensor, pad_id: int) -> Tensor:
    """The bias with -inf for the pad, which is never written: whatever is added to its logit, it stays so."""
    return bias.detach().clone().index_fill_(0, torch.tensor(pad_id, device=bias.device), -torch.inf)
