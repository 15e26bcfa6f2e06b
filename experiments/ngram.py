"""An n-gram model of tokens: what counting alone gives, a control of every student.

Modified Kneser-Ney smoothing, interpolated (Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling", 1999, section 3). With h a context and h' the same without its first token,

    p(w | h) = max(a(hw) - D(a(hw)), 0) / A(h)  +  γ(h) / A(h) · p(w | h'),     p(w | h') alone where A(h) = 0
    A(h) = Σ_w a(hw)          γ(h) = D_1·N_1(h) + D_2·N_2(h) + D_3·N_3+(h)
    D_i = i - (i + 1)·Y·n_{i+1} / n_i       Y = n_1 / (n_1 + 2·n_2)       D(0) = 0, D(a) = D_3 for a > 3

a is how often hw stands in the text for the highest order, and for the lower ones how many different tokens stand
before it. N_i(h) is the number of w with a(hw) = i, n_i that of all n-grams of the order. Below the lowest order every
token has 1/V.

Sequences are texts of their own, as they are to the students. N-grams are 64-bit hashes in sorted arrays, and a model
is built order by order: some 100 bytes for each token and 50 more for each different n-gram at the peak. That two of
10⁸ n-grams share a hash has a probability of 0.03 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentforge.trainer.data.sequence_order import mixed

Keys = NDArray[np.uint64]
# Of a text that is too small for the formula: what it tends to, as in Heafield's lmplz.
_USUAL_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order, and their contexts.

    Attributes:
        grams: hashes, ascending, [m].
        counts: a, float64 [m].
        contexts: hashes, ascending, [c].
        totals: A, float64 [c].
        left: γ, float64 [c].
        discounts: D of 0, 1, 2, and 3 and more, float64 [4].
    """

    grams: Keys
    counts: NDArray[np.float64]
    contexts: Keys
    totals: NDArray[np.float64]
    left: NDArray[np.float64]
    discounts: NDArray[np.float64]

    def interpolated(self, grams: Keys, contexts: Keys, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """p(w | h) of n-grams and their contexts, all of one shape, from p(w | h')."""
        context, is_known = _find(self.contexts, contexts)
        gram, is_seen = _find(self.grams, grams)
        counts = np.where(is_seen, self.counts[gram], 0.0)
        discounted = counts - _discount(self.discounts, counts)
        return np.where(is_known, (discounted + self.left[context] * lower) / self.totals[context], lower)


class NgramModel:
    """Counts a text; see the module.

    Args:
        sequences: ids, [num, L], each row a text of its own.
        order: n of the longest n-grams, at least 1 and at most L.
        vocab_size: V.
        on_order: called after every order.
    """

    def __init__(
        self,
        sequences: NDArray[np.integer],
        order: int,
        vocab_size: int,
        on_order: Callable[[], None] = lambda: None,
    ) -> None:
        self.vocab_size = vocab_size
        self._orders: list[_Order] = []
        longer = np.empty(0, np.int64)
        for n in range(order, 0, -1):
            grams, contexts = _hashes(sequences, n)
            keys, first, counts = np.unique(grams, return_index=True, return_counts=True)
            different = first
            if n < order:
                # One for each different n-gram that is one longer: that one's last n tokens, which begin one later. Its
                # row of hashes is one shorter.
                row, column = np.divmod(longer, grams.shape[1] - 1)
                ends = row * grams.shape[1] + column + 1
                keys, first, counts = np.unique(grams.ravel()[ends], return_index=True, return_counts=True)
                first = ends[first]
            self._orders.insert(0, _counted(keys, counts, contexts.ravel()[first]))
            longer = different
            on_order()

    @property
    def num_ngrams(self) -> int:
        """Different n-grams of all orders."""
        return sum(len(order.grams) for order in self._orders)

    def probabilities(self, sequences: NDArray[np.integer]) -> NDArray[np.float64]:
        """p of every token of sequences [num, L] behind those before it in its sequence, [num, L]."""
        found = np.full(sequences.shape, 1.0 / self.vocab_size)
        for n, order in enumerate(self._orders[: sequences.shape[1]], 1):
            # A sequence's first tokens have no longer context.
            found[:, n - 1 :] = order.interpolated(*_hashes(sequences, n), found[:, n - 1 :])
        return found


def _hashes(sequences: NDArray[np.integer], n: int) -> tuple[Keys, Keys]:
    """Hashes of the n-grams that begin at each place of sequences [num, L], and of all but their last tokens,
    [num, L - n + 1]."""
    num, length = sequences.shape
    contexts = grams = np.zeros((num, length + 1), np.uint64)
    for i in range(n):
        contexts = grams[:, :-1]
        # Multiplied by an odd number: otherwise the bits of two ids would meet as they are.
        grams = mixed(contexts * np.uint64(0x9E3779B97F4A7C15) + sequences[:, i:].astype(np.uint64) + np.uint64(1))
    return grams, contexts


def _counted(keys: Keys, counts: NDArray[np.int64], context_of: Keys) -> _Order:
    """An order of n-grams, whose contexts are [m]."""
    discounts = _discounts(counts)
    contexts, inverse = np.unique(context_of, return_inverse=True)
    totals = np.bincount(inverse, weights=counts).astype(np.float64)
    left = np.bincount(inverse, weights=_discount(discounts, counts)).astype(np.float64)
    return _Order(keys, counts.astype(np.float64), contexts, totals, left, discounts)


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """D of 0, 1, 2, and 3 and more."""
    n = [float((counts == i).sum()) for i in range(1, 5)]
    if not all(n):
        return _USUAL_DISCOUNTS
    y = n[0] / (n[0] + 2 * n[1])
    found = [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)]
    # More than is there cannot be taken.
    return np.array([0.0, *(min(max(d, 0.0), float(i)) for i, d in enumerate(found, 1))])


def _discount(discounts: NDArray[np.float64], counts: NDArray[np.integer] | NDArray[np.float64]) -> NDArray[np.float64]:
    taken: NDArray[np.float64] = discounts[np.minimum(counts, 3).astype(np.int64)]
    return taken


def _find(keys: Keys, wanted: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where ``wanted`` stand among ascending keys, and whether they do."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    return at, keys[at] == wanted
