"""Rows looked at block by block."""

from functools import cache

import torch
from torch import Tensor

BLOCK = 128


def block_maxima(rows: Tensor) -> Tensor:
    """Maxima of the blocks, NaN where one has a NaN, [b, ceil(n / 128)]."""
    whole, rest = _split(rows)
    maxima = whole.amax(-1)
    return maxima if rest is None else torch.cat([maxima, rest.amax(-1, keepdim=True)], -1)


def block_entries(rows: Tensor, block: Tensor) -> Tensor:
    """The entries of one block of each row, int64 [b, 1] -> [b, 128]; behind a row's end its last entry is repeated."""
    n = rows.shape[-1]
    at = torch.add(places(BLOCK, rows.device), block, alpha=BLOCK)
    return rows.gather(1, at.clamp_(max=n - 1) if n % BLOCK else at)


@cache
def places(num: int, device: torch.device) -> Tensor:
    """0 to num - 1, int64 [num]; must not be changed."""
    return torch.arange(num, device=device)


def _split(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Whole blocks, [b, n // 128, 128], and what is behind them."""
    n = rows.shape[-1]
    if n % BLOCK == 0 and rows.is_contiguous():
        return rows.view(-1, n // BLOCK, BLOCK), None
    count = n // BLOCK
    rest = rows[:, count * BLOCK :] if n % BLOCK else None
    return rows[:, : count * BLOCK].unflatten(-1, (count, BLOCK)), rest
