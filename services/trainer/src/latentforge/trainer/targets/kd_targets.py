"""The teacher's rows as tensors that lie over the tokens they are for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.chunks import shift_right
from latentforge.model.sparse_kd import KdTargets
from latentforge.teacher_client.sparse_rows import SparseRows

_NO_LOGPROB = -1e4


def kd_targets(rows: Sequence[SparseRows], length: int, pads: Sequence[int]) -> KdTargets:
    """Rows of a batch as tensors that lie over its tokens, shifted like them.

    Rows may hold different numbers of entries. Where ids were mapped from strings, what no id was found for belongs to
    the tail: its mass is then everything that the row's entries leave.

    Args:
        rows: one block per sequence; row r is for token first_position + r of the unshifted sequence.
        length: tokens per sequence, L.
        pads: how far each sequence was shifted right (``chunks.shift_right``).

    Returns:
        Index i holds the distribution FOR token i of the shifted batch; where no row exists (position 0, pads)
        ``has_row`` is False.

    Raises:
        ValueError: a block reaches beyond its sequence.
    """
    top_k = max(r.top_k for r in rows)
    blocks = [_block(r, length, p, top_k) for r, p in zip(rows, pads, strict=True)]
    return KdTargets(*(torch.stack(tensors) for tensors in zip(*blocks, strict=True)))


def _block(rows: SparseRows, length: int, pads: int, top_k: int) -> tuple[Tensor, ...]:
    first, stop = rows.first_position, rows.first_position + len(rows)
    if stop > length:
        raise ValueError(f"rows for tokens {first}..{stop - 1} of a sequence of {length}")
    # Entries beyond counts mean nothing; id 0 with no probability is harmless wherever they are gathered.
    void = np.arange(rows.top_k)[None] >= rows.counts[:, None]
    logprobs = np.where(void, np.float32(_NO_LOGPROB), rows.logprobs)
    tail = rows.tail_mass
    if rows.unmapped_mass is not None:
        tail = np.clip(1 - np.exp(logprobs.astype(np.float64)).sum(1), 0, 1)
    columns: list[tuple[NDArray[Any], float | bool]] = [
        (_widened(np.where(void, 0, rows.ids).astype(np.int64), top_k, 0), 0),
        (_widened(logprobs, top_k, _NO_LOGPROB), 0.0),
        (rows.counts.astype(np.int64), 0),
        (rows.realised_logprobs.astype(np.float32), 0.0),
        (tail.astype(np.float32), 0.0),
        (np.ones(len(rows), dtype=np.bool_), False),
    ]
    placed = []
    for values, fill in columns:
        whole = torch.full((length, *values.shape[1:]), fill, dtype=torch.from_numpy(values[:0]).dtype)
        whole[first:stop] = torch.from_numpy(values)
        placed.append(shift_right(whole, pads, fill))
    return tuple(placed)


def _widened(values_nk: NDArray[Any], top_k: int, fill: float) -> NDArray[Any]:
    return np.pad(values_nk, ((0, 0), (0, top_k - values_nk.shape[1])), constant_values=fill)
