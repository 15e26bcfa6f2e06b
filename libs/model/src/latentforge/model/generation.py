"""Generation from ids to ids: the student, K tokens a step, and its token-level rival with the same backbone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentforge.model.chunks import left_pad_count
from latentforge.model.incremental import IncrementalChunks, IncrementalTokens
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, sample_with_logprobs
from latentforge.model.token_level import TokenLevelModel

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class GeneratedChunk:
    """What one step wrote.

    Attributes:
        token_ids: up to K ids (one from the token-level rival), without the end-of-text id; empty if that came first.
        logprobs: the model's log probability of each id, before temperature and truncation.
        finish_reason: None while there is more to come; "stop" at end of text, "length" at max_tokens or a full
            context, "cancelled" when the caller said so.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None = None


class ChunkGenerator:
    """Generates with a :class:`LatentModel`; calls share nothing but the weights, so threads may run them at once."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model.eval()
        self.config = model.student.config

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a chunk."""
        return (self.config.max_chunks - 1) * self.config.chunk_size

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams | None = None,
        eos_id: int | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[GeneratedChunk]:
        """Continues a prompt, chunk by chunk.

        A prompt whose length is no multiple of K gets pads on the left of its first chunk, as in training; an empty one
        is the start embedding alone. The first chunk is computed when the iterator is first advanced.

        Args:
            prompt_ids: ids of the prompt.
            max_tokens: at most so many ids are written.
            params: how tokens are drawn; the default samples at temperature 1.
            eos_id: ends the text; the student's own by default.
            cancel: asked before every step; True ends with finish reason "cancelled".

        Raises:
            ValueError: an id is not in the vocabulary, max_tokens is below 1, or the prompt is too long.
        """
        config = self.config
        _check_request(prompt_ids, max_tokens, config.vocab_size, self.max_prompt_tokens)
        return self._run(
            prompt_ids, max_tokens, params or SamplingParams(), config.eos_id if eos_id is None else eos_id, cancel
        )

    # Inference mode is entered for each step: held over a yield, it would reach into the caller's own code.
    def _run(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams,
        eos_id: int,
        cancel: Callable[[], bool] | None,
    ) -> Iterator[GeneratedChunk]:
        config, k = self.config, self.config.chunk_size
        device = self.model.student.start.device
        rng = params.generator(device)
        prompt = torch.tensor([prompt_ids], dtype=torch.int64, device=device)
        decoding = IncrementalChunks(self.model, prompt, rng)
        room = config.max_chunks * k - len(prompt_ids) - left_pad_count(len(prompt_ids), k)
        left = min(max_tokens, room)
        last: Tensor | None = None
        while True:
            if cancel is not None and cancel():
                yield GeneratedChunk([], [], "cancelled")
                return
            with torch.inference_mode():
                decoding.begin_chunk(last)
                ids, logprobs, ended = self._write_chunk(decoding, min(k, left), params, eos_id, rng)
            left -= len(ids)
            if ended or not left:
                yield GeneratedChunk(ids, logprobs, "stop" if ended else "length")
                return
            yield GeneratedChunk(ids, logprobs)
            last = torch.tensor([ids], dtype=torch.int64, device=device)

    def _write_chunk(
        self, decoding: IncrementalChunks, limit: int, params: SamplingParams, eos_id: int, rng: torch.Generator
    ) -> tuple[list[int], list[float], bool]:
        """Writes up to ``limit`` tokens of the chunk that was begun; gives them, their log probabilities, and whether
        the end of text followed."""
        ids: list[int] = []
        logprobs: list[float] = []
        token: Tensor | None = None
        for k in range(limit):
            token, logprob = sample_with_logprobs(decoding.next_logits(k, token), params, rng)
            token_id = int(token)
            if token_id == eos_id:
                return ids, logprobs, True
            ids.append(token_id)
            logprobs.append(float(logprob))
        return ids, logprobs, False


class TokenGenerator:
    """Generates with a token-level student, one token a step, with the same sampling."""

    def __init__(self, model: TokenLevelModel) -> None:
        self.model = model.eval()
        self.config = model.config

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams | None = None,
        eos_id: int | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[GeneratedChunk]:
        """As :meth:`ChunkGenerator.generate`, with one token an item."""
        config = self.config
        _check_request(prompt_ids, max_tokens, config.vocab_size, config.max_tokens - 1)
        return self._run(
            prompt_ids, max_tokens, params or SamplingParams(), config.eos_id if eos_id is None else eos_id, cancel
        )

    def _run(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams,
        eos_id: int,
        cancel: Callable[[], bool] | None,
    ) -> Iterator[GeneratedChunk]:
        model, config = self.model, self.config
        device = model.start.device
        rng = params.generator(device)
        decoding = IncrementalTokens(model)
        new_ids = torch.tensor([prompt_ids], dtype=torch.int64, device=device)
        room = min(max_tokens, config.max_tokens - len(prompt_ids))
        for written in range(1, room + 1):
            if cancel is not None and cancel():
                yield GeneratedChunk([], [], "cancelled")
                return
            with torch.inference_mode():
                drawn, logprob = sample_with_logprobs(decoding.next_logits(new_ids), params, rng)
                new_ids = drawn[:, None]
                token_id = int(drawn)
            if token_id == eos_id:
                yield GeneratedChunk([], [], "stop")
                return
            yield GeneratedChunk([token_id], [float(logprob)], "length" if written == room else None)


@torch.no_grad()
def store_for_one_request(model: LatentModel | TokenLevelModel) -> None:
    """Stores float32 output tables column by column; values and shapes stay.

    MKL multiplies a table that is larger than the caches with one row of input two to four times as fast when it is
    stored so, and with the K rows of a chunk 1.5 times as fast on a processor with AVX-512 (on one without, a little
    slower); with the many rows of a batch it is slower, and other number formats are much slower. For a CPU model that
    from now on only answers single requests: safetensors does not save such a table.
    """
    if isinstance(model, TokenLevelModel):
        tables = [model.output_table.weight]
    else:
        decoder = model.student.chunk_decoder
        tables = [model.output_weight] if decoder is None else [model.output_weight, decoder.output.weight]
    for table in tables:
        if table.dtype == torch.float32 and table.device.type == "cpu":
            table.data = table.data.T.contiguous().T


def _check_request(prompt_ids: Sequence[int], max_tokens: int, vocab_size: int, max_prompt_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}; ask for at least 1")
    if len(prompt_ids) > max_prompt_tokens:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens, but this model takes at most {max_prompt_tokens}; shorten it"
        )
    for token_id in prompt_ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"prompt id {token_id} is not in the vocabulary of {vocab_size} ids; use this model's tokenizer"
            )
