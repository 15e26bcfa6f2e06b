"""Incremental decoding: the next token's logits from what is written so far, for one text or many of one length."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentforge.model.chunks import to_chunks
from latentforge.model.induction import InductionState
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel


class IncrementalChunks:
    """Logits of a latent student: :meth:`begin_chunk` for each chunk, then :meth:`next_logits` for its tokens in turn.

    Attributes:
        logits: of the chunk that was begun, float [b, K, V]; those of token k are right once :meth:`next_logits` gave
            them. Pads have -inf.
    """

    def __init__(self, model: LatentModel, prompts: Tensor, rng: torch.Generator) -> None:
        """Makes b texts that begin with prompts, int64 [b, L]; ``rng`` draws the energy head's noise.

        A prompt whose length is no multiple of K gets pads on the left of its first chunk, as in training.
        """
        config = model.student.config
        self._model, self._rng = model, rng
        self._cache = DynamicCache()
        self._prompts = to_chunks(prompts, config.chunk_size, config.pad_id)
        self._window = prompts.new_full((len(prompts), config.chunk_decoder.window, config.chunk_size), config.pad_id)
        induction = model.student.induction
        self._text = None if induction is None else induction.start(len(prompts))
        self._state: Any = None
        # Kept from chunk to chunk: memory that is new to the process costs as much as what is computed into it.
        size = len(prompts), config.chunk_size, config.vocab_size
        self.logits = torch.empty(size, dtype=model.student.bias.dtype, device=prompts.device)

    def begin_chunk(self, written: Tensor | None = None) -> None:
        """Goes on to the next chunk behind the one that was ``written``, int64 [b, K]; None behind the prompts."""
        model, student, decoder = self._model, self._model.student, self._model.student.chunk_decoder
        new = self._prompts if written is None else written[:, None]
        inputs = student.embed_chunks(new)
        if written is None:
            inputs = torch.cat([student.start_inputs(len(new)), inputs], 1)
        hidden = student.run_backbone(inputs, self._cache)[:, -1]
        latents = student.head(hidden, 1, self._rng)[0] if model.writes_from_latents else hidden.new_empty(0)
        # The K tokens' logits cost one pass over the output layer together; the corrections come token by token.
        features = model.logit_features(hidden, latents).flatten(0, 1)
        torch.addmm(student.bias, features, model.output_weight.T, out=self.logits.flatten(0, 1))
        self.logits[..., student.config.pad_id] = float("-inf")
        if decoder is None:
            return
        self._window = torch.cat([self._window, new], 1)[:, new.shape[1] :]
        self._state = decoder.first_state(hidden, student.embed(self._window.flatten(1)))
        # The induction head has read all but the last chunk's last token, and of the prompts nothing.
        self._read(new.flatten(1) if written is None else written[:, -1:])

    def next_logits(self, k: int, last: Tensor | None) -> Tensor:
        """Logits of token k, float [b, V], which may be changed; ``last`` is token k-1, int64 [b], None before k=0."""
        student, decoder = self._model.student, self._model.student.chunk_decoder
        row = self.logits[:, k]
        if decoder is None:
            return row
        if last is not None:
            embedded = student.embed(last)
            self._state = decoder.next_state(self._state, embedded)
            self._read(last[:, None], embedded[:, None])
        correction = decoder.correction(self._state)
        if student.induction is None or self._text is None:
            return decoder.output.add_to(row, correction)
        found, boosts, ids = student.induction.find(self._text)
        return decoder.output.add_to(row, correction + found).scatter_add_(1, ids, boosts)

    def _read(self, ids: Tensor, embedded: Tensor | None = None) -> None:
        """Lets the induction head read ids [b, t]."""
        student = self._model.student
        if student.induction is not None and self._text is not None:
            student.induction.advance(self._text, ids, student.embed(ids) if embedded is None else embedded)


class IncrementalTokens:
    """Logits of a token-level student."""

    def __init__(self, model: TokenLevelModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._text: InductionState | None = None

    def next_logits(self, new_ids: Tensor) -> Tensor:
        """Reads ids, int64 [b, t], of which the first are the prompts; gives the next token's logits, float [b, V]."""
        model = self._model
        embedded = inputs = model.embed(new_ids)
        if not self._cache.get_seq_length():
            inputs = torch.cat([model.start_inputs(len(new_ids)), embedded], 1)
            if model.induction is not None:
                self._text = model.induction.start(len(new_ids))
        hidden = model.run_backbone(inputs, self._cache)[:, -1]
        if model.induction is None or self._text is None:
            row = model.output_of(hidden).logits()
        else:
            model.induction.advance(self._text, new_ids, embedded)
            found, boosts, ids = model.induction.find(self._text)
            row = model.output_of(hidden, found).logits().scatter_add_(1, ids, boosts)
        row[:, model.config.pad_id] = float("-inf")
        return row
