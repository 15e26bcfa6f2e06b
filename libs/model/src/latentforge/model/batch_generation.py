"""Generation for many prompts of one length at once, ids to ids; every row steps together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentforge.model.chunks import left_pad_count
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams, sample
from latentforge.model.token_level import TokenLevelModel
from latentforge.model.writers import ChunkWriter, TokenWriter


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
    write = (
        _chunk_steps(model, prompts, params) if isinstance(model, LatentModel) else _token_steps(model, prompts, params)
    )
    token_ids = prompts.new_full((prompts.shape[0], num_tokens), config.eos_id)
    ended = torch.zeros_like(token_ids[:, 0], dtype=torch.bool)
    steps = 0
    for written in range(0, num_tokens, model.chunk_size):
        chunk = token_ids[:, written : written + model.chunk_size]
        write(chunk)
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


def _chunk_steps(model: LatentModel, prompts: Tensor, params: SamplingParams) -> Callable[[Tensor], None]:
    """Each call fills the next chunk, [b, K]; the last one may be shorter."""
    rng = params.generator(prompts.device)
    writer = ChunkWriter(model, prompts, rng)
    last: Tensor | None = None

    def write(chunk: Tensor) -> None:
        nonlocal last
        writer.begin(last)
        for k in range(chunk.shape[1]):
            chunk[:, k] = sample(writer.row(k, chunk[:, k - 1] if k else None), params, rng)
        last = chunk

    return write


def _token_steps(model: TokenLevelModel, prompts: Tensor, params: SamplingParams) -> Callable[[Tensor], None]:
    """Each call fills the next token, [b, 1]."""
    rng = params.generator(prompts.device)
    writer = TokenWriter(model)
    new_ids = prompts

    def write(chunk: Tensor) -> None:
        nonlocal new_ids
        chunk[:, 0] = sample(writer.row(new_ids), params, rng)
        new_ids = chunk

    return write


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
