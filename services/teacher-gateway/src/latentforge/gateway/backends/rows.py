"""Sparse rows from what a server says of each position by id: k or k+1 entries, the realised token among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import TokenIds
from latentforge.teacher_client.sparse_rows import SparseRows

# What stands for -inf in JSON, as vLLM writes it.
_NOTHING = -9999.0
# What float32 log-probabilities of up to a thousand entries may sum to beyond 1.
_EPSILON = 1e-3


class WrongRowsError(ValueError):
    """Rows that no teacher can have computed for these tokens, with the position that shows it."""


class Entry(Protocol):
    """One token at one position: nats, and 1 for the most probable; rank 0 is unknown, and not among the first k."""

    @property
    def logprob(self) -> float: ...

    @property
    def rank(self) -> int | None: ...


@dataclass(frozen=True)
class Entries:
    """The m entries of n consecutive rows, one row after another.

    Attributes:
        lengths: int64 [n], entries of each row.
        ids: int64 [m].
        logprobs: float64 [m], nats.
        ranks: int64 [m], as in :class:`Entry`.
    """

    lengths: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    ranks: NDArray[np.int64]


def entries_of(rows: Sequence[Mapping[int, Entry] | None], first_position: int) -> Entries:
    """Entries of rows that map ids to what is said about them.

    Raises:
        WrongRowsError: a row or a rank is null.
    """
    try:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))  # type: ignore[arg-type]
        # Millions of entries pass here, so no Python code runs for each.
        entries = list(chain.from_iterable(map(_VALUES, rows)))
        return Entries(
            lengths,
            np.fromiter(chain.from_iterable(rows), np.int64, len(entries)),  # type: ignore[arg-type]
            np.fromiter(map(_LOGPROB, entries), np.float64, len(entries)),
            np.fromiter(map(_RANK, entries), np.int64, len(entries)),
        )
    except TypeError:
        null = next((i for i, row in enumerate(rows) if row is None), None)
        if null is None:
            raise WrongRowsError("an entry has no rank") from None
        raise WrongRowsError(f"the row for position {first_position + null} is null") from None


_VALUES: Callable[[Any], Iterable[Entry]] = methodcaller("values")
_LOGPROB = attrgetter("logprob")
_RANK = attrgetter("rank")


def rows_of(entries: Entries, realised: TokenIds, first_position: int, top_k: int, vocab_size: int) -> SparseRows:
    """Rows in rank order with the realised tokens apart.

    Args:
        entries: of n rows.
        realised: uint32 [n], the token that is really at each position.
        first_position: of row 0.
        top_k: entries per row, at most ``vocab_size``.
        vocab_size: ids are smaller.

    Raises:
        WrongRowsError: an id is out of range, a row misses its own token or one of its ``top_k`` ranks or has it twice,
            is not sorted, or sums to more than 1.
    """
    n = len(realised)
    if len(entries.lengths) != n:
        raise WrongRowsError(f"there are {len(entries.lengths)} rows, and {n} positions to score")
    row_m = np.repeat(np.arange(n), entries.lengths)

    def refuse(row: int, what: str) -> None:
        raise WrongRowsError(f"the row for position {first_position + row} {what}")

    beyond = np.flatnonzero((entries.ids < 0) | (entries.ids >= vocab_size))
    if len(beyond):
        at = int(beyond[0])
        refuse(int(row_m[at]), f"has id {entries.ids[at]}; ids are 0 to {vocab_size - 1}")
    own_m = entries.ids == np.repeat(realised, entries.lengths)
    own_n = np.bincount(row_m[own_m], minlength=n)
    if (own_n != 1).any():
        at = int((own_n != 1).argmax())
        refuse(at, f"has {own_n[at]} entries for the token that is there, {realised[at]}")

    kept_m = (entries.ranks >= 1) & (entries.ranks <= top_k)
    cells = row_m[kept_m] * top_k + entries.ranks[kept_m] - 1
    found_nk = np.bincount(cells, minlength=n * top_k).reshape(n, top_k)
    if (found_nk != 1).any():
        at, rank = np.argwhere(found_nk != 1)[0]
        refuse(int(at), f"has {found_nk[at, rank]} entries of rank {rank + 1}; one is needed for each of {top_k}")
    ids_nk = np.empty((n, top_k), np.uint32)
    logprobs_nk = np.empty((n, top_k), np.float64)
    ids_nk.reshape(-1)[cells] = entries.ids[kept_m]
    logprobs_nk.reshape(-1)[cells] = entries.logprobs[kept_m]
    logprobs_nk[logprobs_nk <= _NOTHING] = -np.inf
    unsorted = ~(logprobs_nk[:, 1:] <= logprobs_nk[:, :-1]).all(axis=1)
    if unsorted.any():
        refuse(int(unsorted.argmax()), "is not sorted by rank")
    mass_n = np.exp(logprobs_nk).sum(axis=1)
    # Written so that NaN is refused too.
    wrong = ~(mass_n <= 1 + _EPSILON)
    if wrong.any():
        at = int(wrong.argmax())
        refuse(at, f"has probabilities that sum to {mass_n[at]:.4f}")

    realised_logprobs = entries.logprobs[own_m]
    return SparseRows(
        first_position=first_position,
        ids=ids_nk,
        logprobs=logprobs_nk.astype(np.float32),
        counts=np.isfinite(logprobs_nk).sum(axis=1).astype(np.uint16),
        realised_logprobs=np.where(realised_logprobs <= _NOTHING, -np.inf, realised_logprobs).astype(np.float32),
        realised_ranks=entries.ranks[own_m].astype(np.uint32),
        tail_mass=np.clip(1 - mass_n, 0, 1).astype(np.float32),
    )
