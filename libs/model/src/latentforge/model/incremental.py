"""Incremental decoding: the next token's logits from what is written so far, for one text or many of one length.

What was read stays in caches (the backbone's keys and values, the chunk decoder's state, the induction heads' keys), so
that a step costs the new tokens alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentforge.model.chunks import to_chunks
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel

# Gets k and the logits [b, V] of a step's token k, which it may change; gives that token, int64 [b], or ends the step.
Pick = Callable[[int, Tensor], Tensor | None]


class IncrementalDecoding(ABC):
    """b texts that begin with prompts of one length."""

    @abstractmethod
    def step(self, written: Tensor | None, limit: int, pick: Pick) -> None:
        """Runs the backbone once and has ``pick`` choose up to ``limit`` tokens; pads have a logit of -inf.

        Args:
            written: what the step before chose, int64 [b, chunk_size]; None for the first one, behind the prompts.
            limit: from 1 to the model's chunk_size.
            pick: None from it ends the step.
        """


class IncrementalChunks(IncrementalDecoding):
    """Of a latent student: :meth:`begin_chunk` for each chunk, then :meth:`next_logits` for its tokens in turn.

    Attributes:
        logits: of the chunk that was begun, float [b, K, V]; those of token k are right once :meth:`next_logits` gave
            them.
    """

    def __init__(self, model: LatentModel, prompts: Tensor, rng: torch.Generator) -> None:
        """Begins with prompts, int64 [b, L]; ``rng`` draws the energy head's noise.

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

    def step(self, written: Tensor | None, limit: int, pick: Pick) -> None:
        self.begin_chunk(written)
        token: Tensor | None = None
        for k in range(limit):
            token = pick(k, self.next_logits(k, token))
            if token is None:
                return

    def begin_chunk(self, written: Tensor | None = None) -> None:
        """Begins the chunk behind the one that was ``written``, int64 [b, K]; None begins behind the prompts."""
        model, student, decoder = self._model, self._model.student, self._model.student.chunk_decoder
        new_btk = self._prompts if written is None else written[:, None]
        inputs = student.embed_chunks(new_btk)
        if written is None:
            inputs = torch.cat([student.start_inputs(len(new_btk)), inputs], 1)
        hidden = student.run_backbone(inputs, self._cache)[:, -1]
        latents = student.head(hidden, 1, self._rng)[0] if model.writes_from_latents else hidden.new_empty(0)
        # The K tokens' logits cost one pass over the output layer together; the corrections come token by token.
        features = model.logit_features(hidden, latents).flatten(0, 1)
        torch.addmm(student.bias, features, model.output_weight.T, out=self.logits.flatten(0, 1))
        self.logits[..., student.config.pad_id] = float("-inf")
        if decoder is None:
            return
        self._window = torch.cat([self._window, new_btk], 1)[:, new_btk.shape[1] :]
        self._state = decoder.first_state(hidden, student.embed(self._window.flatten(1)))
        # The induction heads have read all but the last chunk's last token, and of the prompts nothing.
        self._read(new_btk.flatten(1) if written is None else written[:, -1:])

    def next_logits(self, k: int, last: Tensor | None) -> Tensor:
        """Logits of token k, float [b, V], which may be changed; ``last`` is token k-1, int64 [b], None before k=0."""
        student, decoder = self._model.student, self._model.student.chunk_decoder
        logits = self.logits[:, k]
        if decoder is None:
            return logits
        if last is not None:
            embedded = student.embed(last)
            self._state = decoder.next_state(self._state, embedded)
            self._read(last[:, None], embedded[:, None])
        correction = decoder.correction(self._state)
        if student.induction is None or self._text is None:
            return decoder.output.add_to(logits, correction)
        found, boosts, ids = student.induction.find(self._text)
        return decoder.output.add_to(logits, correction + found).scatter_add_(1, ids, boosts)

    def _read(self, ids: Tensor, embedded: Tensor | None = None) -> None:
        """Lets the induction heads read ids [b, t]."""
        student = self._model.student
        if student.induction is not None and self._text is not None:
            student.induction.advance(self._text, ids, student.embed(ids) if embedded is None else embedded)


class IncrementalTokens(IncrementalDecoding):
    """Of a token-level student: one token a step."""

    def __init__(self, model: TokenLevelModel, prompts: Tensor) -> None:
        """Begins with prompts, int64 [b, L]."""
        self._model, self._prompts = model, prompts
        self._cache = DynamicCache()
        self._text = None if model.induction is None else model.induction.start(len(prompts))

    def step(self, written: Tensor | None, limit: int, pick: Pick) -> None:
        pick(0, self.next_logits(written))

    def next_logits(self, written: Tensor | None = None) -> Tensor:
        """Reads the tokens that were ``written``, int64 [b, 1], None for the prompts; gives logits, float [b, V]."""
        model = self._model
        new_ids = self._prompts if written is None else written
        embedded = inputs = model.embed(new_ids)
        if written is None:
            inputs = torch.cat([model.start_inputs(len(new_ids)), embedded], 1)
        hidden = model.run_backbone(inputs, self._cache)[:, -1]
        if model.induction is None or self._text is None:
            logits = model.output_of(hidden).logits()
        else:
            model.induction.advance(self._text, new_ids, embedded)
            found, boosts, ids = model.induction.find(self._text)
            logits = model.output_of(hidden, found).logits().scatter_add_(1, ids, boosts)
        logits[:, model.config.pad_id] = float("-inf")
        return logits


def incremental_decoding(
    model: LatentModel | TokenLevelModel, prompts: Tensor, rng: torch.Generator
) -> IncrementalDecoding:
    """The decoding of texts that begin with prompts, int64 [b, L]; ``rng`` draws an energy head's noise."""
    if isinstance(model, TokenLevelModel):
        return IncrementalTokens(model, prompts)
    return IncrementalChunks(model, prompts, rng)
