"""Generation for many prompts of one length at once, ids to ids; all texts step together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentforge.model.chunks import check_ids, left_pad_count
from latentforge.model.decoding.slot_decoding import SlotDecoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import NonFiniteLogitsError, SamplingParams, texts_of_rows
from latentforge.model.token_level import TokenLevelModel


@dataclass(frozen=True)
class BatchGeneration:
    """What was written.

    Attributes:
        token_ids: int64 [b, num_tokens]; from a text's end on it holds the end-of-text id.
        logprobs: of each of them behind those before it, before temperature and truncation, float32 [b, num_tokens];
            with an energy head under the latent that was drawn. Behind an end of text they mean nothing.
        lengths: tokens before the end of text, int64 [b].
        steps: passes of the backbone.
    """

    token_ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    steps: int


def generate_batch(
    model: LatentModel | TokenLevelModel,
    prompts: Tensor,
    num_tokens: int,
    params: SamplingParams,
    *,
    forced: Tensor | None = None,
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
        params: how tokens are drawn, of each text by a seed of its own that follows from the one given.
        forced: the first of the tokens, int64 [b, f <= num_tokens], which are read instead of drawn. Behind a prompt
            of whole chunks they put the first token that is drawn anywhere in a chunk.
        stop_at_eos: False treats the end-of-text id as any other.
        on_step: called after every step.

    Raises:
        ValueError: prompts or forced are no int64 [b, L] of ids of the vocabulary, num_tokens is below 1, or prompts
            and tokens are longer than the context.
        NonFiniteLogitsError: the model's logits are no numbers.
    """
    forced = prompts.new_empty(len(prompts), 0) if forced is None else forced
    _check(model, prompts, num_tokens, forced)
    k, device, eos_id = model.chunk_size, model.device, model.eos_id
    length = prompts.shape[1] + left_pad_count(prompts.shape[1], k)
    # Whole chunks, the last of which is cut. Weights stay stored as they are: the model may be in training.
    decoding = SlotDecoding(model.eval(), len(prompts), length + num_tokens + left_pad_count(num_tokens, k))
    rows = texts_of_rows(params, prompts, model.vocab_size)
    texts = [decoding.open(ids, row.params, logprobs=0) for ids, row in zip(prompts.tolist(), rows, strict=True)]
    while any(text.num_unread for text in texts):
        decoding.prefill(texts, length * len(texts))
    forced_ids = forced.tolist()
    ids: list[list[int]] = [[] for _ in texts]
    logprobs: list[list[float]] = [[] for _ in texts]
    going_on = list(range(len(texts)))
    steps = 0
    for first in range(0, num_tokens, k):
        chunks = decoding.step([texts[i] for i in going_on], [forced_ids[i][first : first + k] for i in going_on])
        steps += 1
        for i, chunk in zip(going_on, chunks, strict=True):
            if not chunk.finite:
                raise NonFiniteLogitsError(
                    f"the model's logits for text {i} of {len(texts)} are NaN, inf or all -inf; "
                    "its weights are not those of a model that was trained without failure"
                )
            assert chunk.logprobs is not None
            ids[i] += chunk.token_ids
            logprobs[i] += chunk.logprobs
            if stop_at_eos and eos_id in chunk.token_ids:
                decoding.close(texts[i])
        if on_step is not None:
            on_step()
        if stop_at_eos:
            going_on = [i for i in going_on if eos_id not in ids[i][first:]]
            if not going_on:
                break
    token_ids = _padded(ids, num_tokens, eos_id, torch.int64).to(device)
    all_logprobs = _padded(logprobs, num_tokens, 0, torch.float32).to(device)
    if not stop_at_eos:
        return BatchGeneration(token_ids, all_logprobs, torch.full_like(token_ids[:, 0], num_tokens), steps)
    after = (token_ids == eos_id).cumsum(1) > 0
    return BatchGeneration(token_ids.masked_fill_(after, eos_id), all_logprobs, (~after).sum(1), steps)


def _padded(rows: list[list[Any]], width: int, filler: float, dtype: torch.dtype) -> Tensor:
    """Lists as the rows of a tensor [b, width], cut or filled up."""
    return torch.tensor([[*row[:width], *[filler] * (width - len(row))] for row in rows], dtype=dtype)


def _check(model: LatentModel | TokenLevelModel, prompts: Tensor, num_tokens: int, forced: Tensor) -> None:
    for name, ids, num in (("prompts", prompts, "at least 1"), ("forced", forced, str(len(prompts)))):
        if ids.dtype != torch.int64 or ids.ndim != 2 or not len(ids) or len(ids) != len(prompts):
            raise ValueError(f"{name} are {ids.dtype} {list(ids.shape)}; give int64 [b, L] with b of {num}")
        check_ids(ids.flatten().tolist(), model.vocab_size, name)
    if num_tokens < max(1, forced.shape[1]):
        raise ValueError(f"num_tokens={num_tokens}; ask for at least {max(1, forced.shape[1])}")
    k = model.chunk_size
    length = prompts.shape[1]
    wanted = length + left_pad_count(length, k) + num_tokens
    if wanted > model.max_tokens:
        raise ValueError(
            f"prompts of {length} tokens and num_tokens={num_tokens} take {wanted} with the pads of the first chunk, "
            f"but this model's context is {model.max_tokens}; shorten one of them"
        )
