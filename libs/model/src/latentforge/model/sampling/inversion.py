"""Draws from unnormalised probabilities by inversion: the entry in which a uniform share of the whole mass lies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentforge.model.sampling.blocks import BLOCK
from latentforge.model.sampling.text import BELOW_ONE

# Shorter rows are quicker summed up at once.
_WORTH_BLOCKS = 4097


def invert(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The entries at shares of the mass, on any device.

    Args:
        mass: float32 [b, n], at least 0, which need not sum to 1.
        uniform: float64 [b], from 0 to BELOW_ONE.

    Returns:
        int64 [b]: entries that have mass, any entry where there is none; float64 [b]: the whole mass.
    """
    # The first entry whose cumulative mass exceeds a share of the whole, where that is below the whole, has mass.
    ends = mass.cumsum(-1, dtype=torch.float64)
    total = ends[:, -1:]
    found = torch.searchsorted(ends, uniform[:, None] * total, right=True).clamp_(max=mass.shape[-1] - 1)
    return found[:, 0], total[:, 0]


class BlockInversion:
    """The same on a CPU, for mass that stays at its place: which block of 128 entries, then which entry of that block.

    Blocks' sums are float32, which is as exact as the mass is; sums over blocks and in a block are float64, where the
    sum of 151,936 small numbers still tells neighbours apart. Rows are looked up one by one by NumPy, whose calls on a
    few numbers cost a third of torch's.

    Attributes:
        total: the mass of each row when it was last drawn from, float64 [b]; NaN or 0 where there is nothing to draw.
    """

    def __init__(self, mass: Tensor) -> None:
        """Of mass, float32 [b, n], as :func:`invert`; it is read when something is drawn."""
        num, n = mass.shape
        self._width = BLOCK if n >= _WORTH_BLOCKS else 1
        count, rest = divmod(n, self._width)
        self._sums = mass if self._width == 1 else torch.empty(num, count + (rest > 0))
        self._ends = torch.empty(self._sums.shape, dtype=torch.float64)
        # What is summed, and where to.
        self._parts: list[tuple[Tensor, Tensor]] = []
        if self._width > 1:
            self._parts.append((mass[:, : n - rest].unflatten(-1, (count, BLOCK)), self._sums[:, :count]))
        if rest:
            self._parts.append((mass[:, n - rest :], self._sums[:, -1]))
        ends = self._ends.numpy()
        self.total = ends[:, -1]
        self._rows = list(zip(mass.numpy(), self._sums.numpy(), ends, strict=True))

    def draw(self, uniforms: Sequence[float]) -> list[int]:
        """The entries at shares ``uniforms`` of each row's mass, from 0 to BELOW_ONE."""
        for entries, sums in self._parts:
            torch.sum(entries, -1, out=sums)
        torch.cumsum(self._sums, -1, dtype=torch.float64, out=self._ends)
        return [self._find(*row, uniform) for row, uniform in zip(self._rows, uniforms, strict=True)]

    def _find(self, mass: "_Row", sums: "_Row", ends: "_Row", uniform: float) -> int:
        total = float(ends[-1])
        if not total > 0:
            return 0
        threshold = uniform * total
        block = int(ends.searchsorted(threshold, "right"))
        if self._width == 1:
            return block
        own, first = float(sums[block]), block * BLOCK
        share = min(max((threshold - float(ends[block]) + own) / own, 0.0), BELOW_ONE)
        entries = mass[first : first + BLOCK].cumsum(dtype=np.float64)
        return first + int(entries.searchsorted(share * float(entries[-1]), "right"))


_Row = npt.NDArray[Any]
