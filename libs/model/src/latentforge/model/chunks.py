"""Tokens to chunks: padding on the left, and phases."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def check_ids(ids: Iterable[int], vocab_size: int, name: str) -> None:
    """Raises ValueError for an id that a vocabulary has not; ``name`` says what holds it."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"{name} id {token_id} is not in the vocabulary of {vocab_size} ids; use this model's tokenizer"
            )


def left_pad_count(num_tokens: int, chunk_size: int) -> int:
    """Pads that make ``num_tokens`` a multiple of ``chunk_size``."""
    return -num_tokens % chunk_size


def to_chunks(tokens: Tensor, chunk_size: int, pad_id: int) -> Tensor:
    """Cuts token ids [..., L] into chunks [..., ceil(L / K), K], the first one padded on the left."""
    pads = left_pad_count(tokens.shape[-1], chunk_size)
    padded = F.pad(tokens, (pads, 0), value=pad_id)
    return padded.view(*padded.shape[:-1], -1, chunk_size)


def shift_right(values: Tensor, pads: int, fill: float | bool) -> Tensor:
    """Puts ``pads`` fills before a sequence and drops as many of its last values: chunks start at another phase.

    Used with the same ``pads`` for token ids (fill: the pad id), for masks (fill: False) and for the teacher's rows
    (fill: 0), it keeps all of them aligned.

    Args:
        values: [L, ...], any dtype; the sequence is the first dimension.
        pads: 0..L.
        fill: what the first ``pads`` positions hold.

    Returns:
        [L, ...], a new tensor.

    Raises:
        ValueError: ``pads`` is not in 0..L.
    """
    length = values.shape[0]
    if not 0 <= pads <= length:
        raise ValueError(f"pads={pads} is not in 0..{length}, the sequence's length")
    return torch.cat([values.new_full((pads, *values.shape[1:]), fill), values[: length - pads]])
