"""Generation from ids to ids: the student, K tokens a step, and its token-level rival with the same backbone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM

from latentforge.model.chunks import to_chunks
from latentforge.model.config import StudentConfig
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, sample
from latentforge.model.student import backbone_config

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
        config = self.config
        device = self.model.student.start.device
        rng = params.generator(device)
        prompt = torch.tensor(prompt_ids, dtype=torch.int64, device=device)
        chunks = to_chunks(prompt, config.chunk_size, config.pad_id)
        cache = DynamicCache()
        written = 0
        new_chunks = chunks
        for position in range(chunks.shape[0], config.max_chunks):
            if cancel is not None and cancel():
                yield GeneratedChunk([], [], "cancelled")
                return
            with torch.inference_mode():
                hidden = self._advance(cache, new_chunks, is_first=written == 0)
                previous = new_chunks[-1] if len(new_chunks) else chunks.new_full((config.chunk_size,), config.pad_id)
                limit = min(config.chunk_size, max_tokens - written)
                ids, logprobs, ended = self._write_chunk(hidden, previous, limit, params, eos_id, rng)
            written += len(ids)
            if ended or written == max_tokens or position + 1 == config.max_chunks:
                yield GeneratedChunk(ids, logprobs, "stop" if ended else "length")
                return
            yield GeneratedChunk(ids, logprobs)
            new_chunks = torch.tensor([ids], dtype=torch.int64, device=device)

    def _advance(self, cache: DynamicCache, new_chunks: Tensor, is_first: bool) -> Tensor:
        """Feeds chunks [t, K]; gives the hidden state [1, h] that predicts the next chunk."""
        student = self.model.student
        parts = [student.start_inputs(1)] if is_first else []
        if len(new_chunks):
            parts.append(student.embed_chunks(new_chunks[None]))
        return student.run_backbone(torch.cat(parts, 1), cache)[:, -1]

    def _write_chunk(
        self, hidden: Tensor, previous: Tensor, limit: int, params: SamplingParams, eos_id: int, rng: torch.Generator
    ) -> tuple[list[int], list[float], bool]:
        """Writes up to ``limit`` tokens; gives them, their log probabilities, and whether the end of text followed."""
        student, autoencoder = self.model.student, self.model.autoencoder
        decoder = student.chunk_decoder
        latent = student.head(hidden, 1, rng)[0]
        # Rows of the chunk cost one pass over the output layer; the corrections come row by row.
        logits_kv = autoencoder.decode(latent)[0].add_(decoder.bias)
        logits_kv[:, self.config.pad_id] = float("-inf")
        output_rv = decoder.output.weight.T
        state = decoder.first_state(hidden, student.embed(previous)[None])
        ids: list[int] = []
        ended = False
        for k in range(limit):
            row = logits_kv[k : k + 1].addmm_(decoder.correction(state), output_rv)
            token = sample(row, params, rng)
            token_id = int(token)
            if token_id == eos_id:
                ended = True
                break
            ids.append(token_id)
            if k + 1 < limit:
                state = decoder.next_state(state, student.embed(token))
        written = logits_kv[: len(ids)].log_softmax(-1)
        logprobs = written[range(len(ids)), ids].tolist()
        return ids, logprobs, ended


class TokenGenerator:
    """The token-level rival: a causal LM with a KV cache, one token a step, the same sampling."""

    def __init__(self, model: Qwen3ForCausalLM, pad_id: int, eos_id: int) -> None:
        model.train(False)
        self.model = model
        self.pad_id = pad_id
        self.eos_id = eos_id

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        params: SamplingParams | None = None,
        eos_id: int | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[GeneratedChunk]:
        """As :meth:`ChunkGenerator.generate`, with one token an item; an empty prompt starts from end of text."""
        limit = self.model.config.max_position_embeddings
        _check_request(prompt_ids, max_tokens, self.model.config.vocab_size, limit - 1)
        stop_id = self.eos_id if eos_id is None else eos_id
        return self._run(list(prompt_ids) or [self.eos_id], max_tokens, params or SamplingParams(), stop_id, cancel)

    def _run(
        self,
        prompt_ids: list[int],
        max_tokens: int,
        params: SamplingParams,
        eos_id: int,
        cancel: Callable[[], bool] | None,
    ) -> Iterator[GeneratedChunk]:
        device = self.model.device
        rng = params.generator(device)
        cache = DynamicCache()
        inputs = torch.tensor([prompt_ids], dtype=torch.int64, device=device)
        room = min(max_tokens, self.model.config.max_position_embeddings - len(prompt_ids))
        for written in range(1, room + 1):
            if cancel is not None and cancel():
                yield GeneratedChunk([], [], "cancelled")
                return
            with torch.inference_mode():
                output = self.model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
                row = output.logits[:, -1]
                row[:, self.pad_id] = float("-inf")
                inputs = sample(row, params, rng)[:, None]
                token_id = int(inputs)
                logprob = float(row[0, token_id] - row.logsumexp(-1))
            if token_id == eos_id:
                yield GeneratedChunk([], [], "stop")
                return
            yield GeneratedChunk([token_id], [logprob], "length" if written == room else None)


def build_token_level(config: StudentConfig) -> Qwen3ForCausalLM:
    """A token-level model, untrained, with the student's backbone width and depth and room for as many tokens."""
    qwen = backbone_config(config, vocab_size=config.vocab_size)
    qwen.max_position_embeddings = config.max_chunks * config.chunk_size
    model = Qwen3ForCausalLM(qwen)
    model.train(False)
    return model


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
