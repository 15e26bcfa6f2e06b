"""What a text's own beginning adds to any token model: a cache of its n-grams.

Jelinek-Mercer interpolation over the text so far (Jelinek and Mercer, 1980; as a cache: Kuhn and De Mori, "A
Cache-Based Natural Language Model for Speech Recognition", 1990). Let q_m(w) be how often w stood in the text so far
behind the last m tokens, of how often these stood there before anything; m = 0 is the text's own frequencies. With
r_{-1} the other model

    r_m(w) = (1 - λ_m)·r_{m-1}(w) + λ_m·q_m(w)      where the last m tokens stood before, else r_m = r_{m-1}

and the last r is the answer. λ is fitted by expectation maximisation on text that is neither counted nor reported on.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 100
_BEGIN = 0.1


class TextCache:
    """The n-grams of the text so far.

    Args:
        longest: m at most.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.weights = np.full(longest + 1, _BEGIN)

    def fit(self, sequences: NDArray[np.integer], probabilities: NDArray[np.float64]) -> None:
        """Fits the weights to sequences [num, L], each a text of its own, and what the other model gives their tokens.

        The expected number of times that q_m was drawn from, of those that it or something below it was.
        """
        shares = self._shares(sequences).reshape(-1, self._longest + 1)
        known, other = ~np.isnan(shares), probabilities.ravel()
        drawn = np.nan_to_num(shares)
        for _ in range(_ROUNDS):
            weights = self.weights * known
            # Of r: how much of each q, and of the other model, is in the mixture.
            above = np.cumprod((1 - weights)[:, ::-1], axis=1)[:, ::-1]
            parts = weights * np.concatenate([above[:, 1:], np.ones((len(above), 1))], 1) * drawn
            rest = above[:, 0] * other
            total = parts.sum(1) + rest
            posterior = parts / total[:, None]
            below = np.cumsum(posterior, 1) + (rest / total)[:, None]
            reached = (below * known).sum(0)
            self.weights = np.where(reached > 0, posterior.sum(0) / np.maximum(reached, 1e-300), self.weights)

    def mixed_with(self, sequences: NDArray[np.integer], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mixture's probabilities of the tokens of sequences [num, L], from the other model's, [num, L]."""
        shares, found = self._shares(sequences), probabilities
        for m, weight in enumerate(self.weights):
            share = shares[..., m]
            found = np.where(np.isnan(share), found, (1 - weight) * found + weight * share)
        return found

    def _shares(self, sequences: NDArray[np.integer]) -> NDArray[np.float64]:
        """q_m of every token, [num, L, longest + 1]; NaN where the last m tokens did not stand before."""
        found = np.full((*sequences.shape, self._longest + 1), np.nan)
        for row, ids in enumerate(sequences.tolist()):
            # An n-gram is counted as such, and as what stood behind a token.
            stood: Counter[tuple[int, ...]] = Counter()
            followed: Counter[tuple[int, ...]] = Counter()
            for place, token in enumerate(ids):
                for m in range(min(place, self._longest) + 1):
                    last = tuple(ids[place - m : place])
                    if before := followed[last]:
                        found[row, place, m] = stood[(*last, token)] / before
                    followed[last] += 1
                    stood[(*last, token)] += 1
        return found
