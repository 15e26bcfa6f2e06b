"""How varied and how repetitive generated ids are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Ids = Sequence[int] | Tensor | np.ndarray


@dataclass(frozen=True)
class TextStats:
    """Of all generated sequences of a setting; None where there was nothing to count (each sequence too short)."""

    distinct_3: float | None
    repetition: float | None
    mean_length: float


def text_stats(sequences: Sequence[Ids]) -> TextStats:
    """Distinct-3, repetition (4-grams) and mean length in tokens of 1-D id sequences.

    Raises:
        ValueError: no sequence at all; an empty one is fine.
    """
    if not len(sequences):
        raise ValueError("sequences is empty; generate at least one")
    lengths = [len(sequence) for sequence in sequences]
    return TextStats(distinct_n(sequences), repetition(sequences), sum(lengths) / len(lengths))


def distinct_n(sequences: Sequence[Ids], n: int = 3) -> float | None:
    """Different n-grams over all n-grams, of all sequences together (distinct-n of Li et al., arXiv 1510.03055).

    None where no sequence has n tokens. It falls as the number of tokens rises: compare only equal amounts of text.
    """
    total = 0
    seen: set[tuple[int, ...]] = set()
    for sequence in sequences:
        for gram in _ngrams(sequence, n):
            total += 1
            seen.add(gram)
    return len(seen) / total if total else None


def repetition(sequences: Sequence[Ids], n: int = 4) -> float | None:
    """Share of tokens that lie in an n-gram which occurred before in the same sequence; our own definition.

    Token i counts if some start s with s <= i < s + n has an earlier start t < s with the same n tokens (the two may
    overlap). The first occurrence does not count: ``a b c d a b c d`` is 4/8, ``a a a a a a`` is 5/6. Tokens of all
    sequences weigh the same, those of sequences shorter than n too; None where there is no token.
    """
    total = sum(len(sequence) for sequence in sequences)
    return sum(num_repeated(sequence, n) for sequence in sequences) / total if total else None


def num_repeated(sequence: Ids, n: int = 4) -> int:
    """How many of a sequence's tokens count for :func:`repetition`."""
    repeated = counted_to = 0
    seen: set[tuple[int, ...]] = set()
    for start, gram in enumerate(_ngrams(sequence, n)):
        if gram in seen:
            repeated += start + n - max(start, counted_to)
            counted_to = start + n
        seen.add(gram)
    return repeated


def _ngrams(sequence: Ids, n: int) -> Iterator[tuple[int, ...]]:
    # A tensor's elements are tensors, which are never the same key.
    ids = sequence.tolist() if isinstance(sequence, Tensor | np.ndarray) else sequence
    return (tuple(ids[start : start + n]) for start in range(len(ids) - n + 1))
