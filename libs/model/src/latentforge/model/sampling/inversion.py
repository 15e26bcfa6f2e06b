"""Draws from unnormalised probabilities by inversion: the entry in which a uniform share of the whole mass lies."""

import torch
from torch import Tensor

from latentforge.model.sampling.blocks import BLOCK, block_entries, block_sums

# Shorter rows are quicker summed up at once.
_WORTH_BLOCKS = 1024


class Inversion:
    """Of mass, float32 [b, n], at least 0, which need not sum to 1.

    Long rows are inverted twice: which block of 128 entries, then which entry of that block. Cumulative sums are
    float64, where the sum of 151,936 small numbers still tells neighbours apart.

    Attributes:
        total: the mass of each row, float64 [b]; NaN or 0 where nothing can be drawn.
    """

    def __init__(self, mass: Tensor, *, in_blocks: bool | None = None) -> None:
        """``in_blocks`` is a matter of speed, and by default of the rows' length."""
        self._mass = mass
        in_blocks = mass.shape[-1] >= _WORTH_BLOCKS if in_blocks is None else in_blocks
        self._sums = block_sums(mass) if in_blocks else None
        self._ends = (mass if self._sums is None else self._sums).cumsum(-1, dtype=torch.float64)
        self.total = self._ends[:, -1]

    def find(self, uniform: Tensor) -> Tensor:
        """The entries at shares ``uniform`` of the mass.

        Args:
            uniform: float64 [b, 1], from 0 to 1.

        Returns:
            int64 [b, 1]: entries that have mass; any entry where a row's total is NaN or 0.
        """
        found, threshold = _find(self._ends, uniform)
        if self._sums is None:
            return found
        mass_of_block = self._sums.gather(1, found)
        start = self._ends.gather(1, found) - mass_of_block
        within = ((threshold - start) / mass_of_block).clamp_(0, 1)
        entries = block_entries(self._mass, found).cumsum(-1, dtype=torch.float64)
        n = self._mass.shape[-1]
        if not n % BLOCK:
            return found * BLOCK + _find(entries, within)[0]
        # What is repeated behind the end of a row is not drawn.
        last = (n - 1 - found * BLOCK).clamp_(max=BLOCK - 1)
        entries = entries.minimum(entries.gather(1, last))
        return (found * BLOCK + _find(entries, within)[0]).clamp_(max=n - 1)


def _find(cumulative: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of cumulative mass [b, n] in which the shares ``uniform`` of it lie, and those shares as mass."""
    # The first entry whose cumulative mass exceeds the threshold has mass; rounding must not reach the total.
    threshold = uniform * (cumulative[:, -1:] * (1 - 2**-50))
    found = torch.searchsorted(cumulative, threshold, right=True)
    return found.clamp_(max=cumulative.shape[-1] - 1), threshold
