"""A wide token table as a narrower one of its principal components."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS_AT_ONCE = 8192


class PrincipalComponents(NamedTuple):
    """``coordinates @ back + mean`` is the best approximation of a table by so many dimensions.

    Attributes:
        coordinates: float32 [V, d], with mean 0 and standard deviation 1 over all entries.
        back: float32 [d, h].
        mean: of the table's rows, float32 [h].
    """

    coordinates: Tensor
    back: Tensor
    mean: Tensor


@torch.no_grad()
def principal_components(table: Tensor, width: int) -> PrincipalComponents:
    """The first ``width`` principal components of a table's rows, divided by the square roots of their singular values.

    With the centred table U·S·Vᵀ the coordinates are U·√S, times one number: between those of the table, where a few
    dimensions outweigh all others, and whitened ones, where what is noise weighs as much as what is not. At the table's
    own width the approximation is exact.

    Args:
        table: float32 [V, h].
        width: of the coordinates, d.

    Raises:
        ValueError: the table has fewer columns, or fewer rows.
    """
    if width > min(table.shape):
        raise ValueError(f"a table of {list(table.shape)} has no {width} principal components; take {min(table.shape)}")
    mean = table.double().mean(0)
    gram = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows in table.split(_ROWS_AT_ONCE):
        centred = rows.double() - mean
        gram += centred.T @ centred
    squares, vectors = torch.linalg.eigh(gram)
    singular, directions = squares.clamp(min=0).sqrt().flip(0)[:width], vectors.flip(1)[:, :width]
    # An eigenvector has either sign: the entry that is farthest from 0 shall be positive.
    farthest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * farthest.sign()
    # Of a table of a lower rank the rest is 0.
    roots = singular.clamp(min=1e-6 * float(singular[0])).sqrt()
    coordinates = torch.cat([(rows.double() - mean) @ directions / roots for rows in table.split(_ROWS_AT_ONCE)])
    scale = coordinates.square().mean().sqrt()
    back = (directions * roots * scale).T
    return PrincipalComponents((coordinates / scale).float(), back.float(), mean.float())
