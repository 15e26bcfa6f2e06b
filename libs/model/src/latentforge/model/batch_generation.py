"""Generation for many prompts of one length at once, ids to ids; every row steps together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from latentforge.model.chunks import left_pad_count, to_chunks
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, sample
from latentforge.model.token_level import TokenLevelModel


@dataclass(frozen=True)
class BatchGeneration:
    """What was written.

    Attributes:
        token_ids: int64 [b, num_tokens]; from a row's end of text on it holds the end-of-text id.
        lengths: tokens before the end of text, int64 [b].
        steps: passes of the backbone.
    """

    token_ids: Tensor
    lengths: Tensor
    steps: int


@torch.inference_mode()
def generate_batch(
    model: LatentModel | TokenLevelModel,
    prompts: Tensor,
    num_tokens: int,
    params: SamplingParams,
    *,
    stop_at_eos: bool = True,
    on_step: Callable[[], None] | None = None,
) -> BatchGeneration:
    """Continues prompts by ``num_tokens`` tokens each, or until all of them have ended.

    A latent student gets pads on the left of the first chunk where L is no multiple of K, as in training. Puts the
    model in evaluation mode.

    Args:
        model: a latent or a token-level student; one step writes K tokens or one.
        prompts: int64 [b, L]; L = 0 is the start embedding alone.
        num_tokens: how many, from 1; no multiple of K is needed.
        params: how tokens are drawn, all rows by one generator.
        stop_at_eos: False treats the end-of-text id as any other.
        on_step: called after every step.

    Raises:
        ValueError: prompts are no int64 [b, L] of ids of the vocabulary, num_tokens is below 1, or both together are
            longer than the context.
    """
    _check(model, prompts, num_tokens)
    model.eval()
    student = model.student if isinstance(model, LatentModel) else model
    config = student.config
    prompts = prompts.to(student.start.device)
    draw = _Draw(params, prompts.device, config.pad_id)
    writer: _LatentWriter | _TokenWriter
    if isinstance(model, LatentModel):
        writer = _LatentWriter(model, prompts, draw)
    else:
        writer = _TokenWriter(model, prompts, draw)
    token_ids = prompts.new_full((prompts.shape[0], num_tokens), config.eos_id)
    ended = torch.zeros_like(token_ids[:, 0], dtype=torch.bool)
    steps = 0
    for written in range(0, num_tokens, model.chunk_size):
        chunk = token_ids[:, written : written + model.chunk_size]
        writer.write(chunk)
        steps += 1
        if on_step is not None:
            on_step()
        if stop_at_eos:
            ended |= (chunk == config.eos_id).any(1)
            if ended.all():
                break
    if not stop_at_eos:
        return BatchGeneration(token_ids, torch.full_like(token_ids[:, 0], num_tokens), steps)
    after = (token_ids == config.eos_id).cumsum(1) > 0
    return BatchGeneration(token_ids.masked_fill_(after, config.eos_id), (~after).sum(1), steps)


class _Draw:
    """Draws a token for each row of logits [b, V], which it changes; never a pad."""

    def __init__(self, params: SamplingParams, device: torch.device, pad_id: int) -> None:
        self.params = params
        self.rng = params.generator(device)
        self.pad_id = pad_id

    def __call__(self, logits: Tensor) -> Tensor:
        logits[:, self.pad_id] = float("-inf")
        return sample(logits, self.params, self.rng)


class _LatentWriter:
    """Writes chunk after chunk with a latent student."""

    def __init__(self, model: LatentModel, prompts: Tensor, draw: _Draw) -> None:
        config = model.student.config
        self.model, self.draw = model, draw
        self.cache = DynamicCache()
        self.new_chunks = to_chunks(prompts, config.chunk_size, config.pad_id)
        self.window = config.chunk_decoder.window
        self.previous = prompts.new_full((prompts.shape[0], self.window, config.chunk_size), config.pad_id)
        self.inputs = torch.cat(
            [model.student.start_inputs(prompts.shape[0]), model.student.embed_chunks(self.new_chunks)], 1
        )

    def write(self, chunk: Tensor) -> None:
        """Fills the next chunk, [b, K]; the last one may be shorter."""
        model, student = self.model, self.model.student
        decoder = student.chunk_decoder
        hidden = student.run_backbone(self.inputs, self.cache)[:, -1]
        latents = student.head(hidden, 1, self.draw.rng)[0]
        logits_bkv = F.linear(model.rows(hidden, latents), model.row_table, student.bias)
        if decoder is not None:
            if self.window:
                self.previous = torch.cat([self.previous, self.new_chunks], 1)[:, -self.window :]
            state = decoder.first_state(model.context(hidden, latents), student.embed(self.previous.flatten(1)))
        for k in range(chunk.shape[1]):
            row = logits_bkv[:, k]
            if decoder is not None:
                if k:
                    state = decoder.next_state(state, student.embed(chunk[:, k - 1]))
                row.addmm_(decoder.correction(state), decoder.output.weight.T)
            chunk[:, k] = self.draw(row)
        if chunk.shape[1] == model.chunk_size:
            self.new_chunks = chunk[:, None]
            self.inputs = student.embed_chunks(self.new_chunks)


class _TokenWriter:
    """Writes token after token with a token-level student."""

    def __init__(self, model: TokenLevelModel, prompts: Tensor, draw: _Draw) -> None:
        self.model, self.draw = model, draw
        self.cache = DynamicCache()
        self.inputs = torch.cat([model.start_inputs(prompts.shape[0]), model.embed(prompts)], 1)

    def write(self, chunk: Tensor) -> None:
        """Fills the next token, [b, 1]."""
        layer = self.model.output_of(self.model.run_backbone(self.inputs, self.cache)[:, -1])
        chunk[:, 0] = self.draw(F.linear(layer.inputs, layer.weight, layer.bias))
        self.inputs = self.model.embed(chunk)


def _check(model: LatentModel | TokenLevelModel, prompts: Tensor, num_tokens: int) -> None:
    if prompts.dtype != torch.int64 or prompts.ndim != 2 or not prompts.shape[0]:
        raise ValueError(f"prompts are {prompts.dtype} {list(prompts.shape)}; give int64 [b, L] with b of at least 1")
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}; ask for at least 1")
    outside = prompts[(prompts < 0) | (prompts >= model.vocab_size)]
    if len(outside):
        raise ValueError(
            f"prompt id {int(outside[0])} is not in the vocabulary of {model.vocab_size} ids; "
            "use this model's tokenizer"
        )
    k = model.chunk_size
    length = prompts.shape[1]
    wanted = length + left_pad_count(length, k) + num_tokens
    if wanted > model.max_tokens:
        raise ValueError(
            f"prompts of {length} tokens and num_tokens={num_tokens} take {wanted} with the pads of the first chunk, "
            f"but this model's context is {model.max_tokens}; shorten one of them"
        )
