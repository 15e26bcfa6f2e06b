"""Rows looked at block by block: what is sought in a long row is first sought among its blocks' sums or maxima.

A row's result depends on that row alone, whatever rows are beside it.
"""

import torch
from torch import Tensor

BLOCK = 128


def block_sums(rows: Tensor) -> Tensor:
    """Sums of the blocks of rows [b, n], the last of which may be short: [b, ceil(n / 128)].

    In the rows' type on a CPU, whose order is the same for any b, and in float64 on others, where it need not be.
    """
    dtype = None if rows.device.type == "cpu" else torch.float64
    whole, rest = _split(rows)
    sums = whole.sum(-1, dtype=dtype)
    return torch.cat([sums, rest.sum(-1, keepdim=True, dtype=dtype)], -1) if rest.shape[-1] else sums


def block_maxima(rows: Tensor) -> Tensor:
    """Maxima of the blocks, NaN where one has a NaN, [b, ceil(n / 128)]."""
    whole, rest = _split(rows)
    maxima = whole.amax(-1)
    return torch.cat([maxima, rest.amax(-1, keepdim=True)], -1) if rest.shape[-1] else maxima


def block_entries(rows: Tensor, block: Tensor) -> Tensor:
    """The entries of one block of each row, int64 [b, 1] -> [b, 128]; behind a row's end its last entry is repeated."""
    n = rows.shape[-1]
    at = block * BLOCK + torch.arange(BLOCK, device=rows.device)
    return rows.gather(1, at.clamp_(max=n - 1) if n % BLOCK else at)


def _split(rows: Tensor) -> tuple[Tensor, Tensor]:
    count = rows.shape[-1] // BLOCK
    return rows[:, : count * BLOCK].unflatten(-1, (count, BLOCK)), rows[:, count * BLOCK :]
