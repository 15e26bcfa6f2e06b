"""Random numbers of a batch that is computed in parts: each part sees what the whole batch would have seen there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowNoise:
    """Draws for some rows of a batch.

    The whole batch's numbers are drawn, and those of the other rows thrown away: a generator's numbers depend on how
    many are drawn at once. Each part needs the generator as the whole batch would have got it.

    Attributes:
        generator: as it is before the batch.
        first: the part's first row.
        rows: how many it has.
        of: how many the whole batch has.
    """

    generator: torch.Generator
    first: int
    rows: int
    of: int


Noise = torch.Generator | RowNoise | None


def uniform(shape: Sequence[int], noise: Noise, dim: int = 0, **options: Any) -> Tensor:
    """Numbers from 0 to 1, [*shape]; ``dim`` is the dimension whose equal parts are the batch's rows.

    Args:
        shape: of the part.
        noise: draws them; None takes torch's own generator.
        dim: see above.
        options: device and dtype, as for :func:`torch.rand`.
    """
    return _drawn(torch.rand, shape, noise, dim, options)


def normal(shape: Sequence[int], noise: Noise, dim: int = 0, **options: Any) -> Tensor:
    """As :func:`uniform`, of the standard normal."""
    return _drawn(torch.randn, shape, noise, dim, options)


def _drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], noise: Noise, dim: int, options: dict[str, Any]
) -> Tensor:
    if not isinstance(noise, RowNoise):
        return draw(tuple(shape), generator=noise, **options)
    whole, of_a_row = list(shape), shape[dim] // noise.rows
    whole[dim] = of_a_row * noise.of
    return draw(whole, generator=noise.generator, **options).narrow(dim, of_a_row * noise.first, shape[dim])
