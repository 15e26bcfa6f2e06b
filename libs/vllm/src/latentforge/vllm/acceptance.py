"""How many drafted tokens the teacher takes, and when one version is clearly worse than another.

The more texts are written at once the shorter drafts are, whoever makes them. So versions are compared at the same
load: by the number of texts of a step, up to a factor of two.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

# A version is worse where its mean lies so many standard errors below the other's, so that chance alone does it to one
# window in a thousand …
STANDARD_ERRORS = 3.0
# … and by this share of the other's too: drafts of one text resemble each other, so that the standard error is smaller
# than it ought to be, and a difference that nobody notices is no reason to go back.
LEAST_FALL = 0.1
# Of a window at least so much must have been written at loads that the other version is known at, …
_COMPARABLE = 0.5
# … which it is from so many drafts on.
_LEAST_DRAFTS = 10
# A baseline is of so many windows at most: traffic changes.
_KEPT_WINDOWS = 4


@dataclass(frozen=True)
class Acceptance:
    """Drafted tokens that the teacher took, of a number of drafts; a text that got no draft counts as one of none.

    Attributes:
        num_drafts: how many drafts it is of.
        total: tokens taken of them.
        squares: Σ of each draft's tokens squared.
    """

    num_drafts: int = 0
    total: int = 0
    squares: int = 0

    def __add__(self, other: "Acceptance") -> "Acceptance":
        return Acceptance(self.num_drafts + other.num_drafts, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Tokens taken of a draft; 0 of no drafts."""
        return self.total / self.num_drafts if self.num_drafts else 0.0

    @property
    def error(self) -> float:
        """Variance of the mean."""
        return max(0.0, self.squares / self.num_drafts - self.mean**2) / self.num_drafts if self.num_drafts else 0.0


# By load: 1 text at once, 2 or 3, 4 to 7 …
ByLoad = Mapping[int, Acceptance]


def overall(found: ByLoad) -> Acceptance:
    """Whatever the load."""
    return sum(found.values(), Acceptance())


def is_clearly_worse(new: ByLoad, old: ByLoad) -> bool | None:
    """Whether ``new`` lies below ``old`` by more than chance and by more than a little; None where nobody can tell.

    With w the share that a load has in new, means and their variances are Σ w·mean and Σ w²·variance, of both, over the
    loads that both know; then mean(old) - mean(new) > max(3 · sqrt(variance(old) + variance(new)), 0.1 · mean(old)).
    """
    loads = [load for load in new if load in old and old[load].num_drafts >= _LEAST_DRAFTS]
    num = sum(new[load].num_drafts for load in loads)
    if not num or num < _COMPARABLE * overall(new).num_drafts:
        return None
    share = {load: new[load].num_drafts / num for load in loads}
    new_mean, old_mean = (sum(share[load] * of[load].mean for load in loads) for of in (new, old))
    error = math.sqrt(sum(share[load] ** 2 * (new[load].error + old[load].error) for load in loads))
    return old_mean - new_mean > max(STANDARD_ERRORS * error, LEAST_FALL * old_mean)


class AcceptanceWindows:
    """A version's acceptance, by windows of a fixed number of drafts.

    Args:
        size: drafts of a window, from 1.

    Attributes:
        num_full: windows that are full.
        last: the last full one; of nothing before.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._open: Counter[tuple[int, int]] = Counter()
        self._full: deque[ByLoad] = deque(maxlen=_KEPT_WINDOWS)
        self.num_full = 0
        self.last: ByLoad = {}

    @property
    def recent(self) -> ByLoad:
        """The last full windows together."""
        loads = {load for window in self._full for load in window}
        return {load: sum((w.get(load, Acceptance()) for w in self._full), Acceptance()) for load in loads}

    def add(self, num_accepted: int, num_texts: int) -> bool:
        """Counts one draft; says whether it filled a window.

        Args:
            num_accepted: tokens of it that the teacher took.
            num_texts: that were drafted for in the same step.
        """
        self._open[num_texts.bit_length(), num_accepted] += 1
        if self._open.total() < self._size:
            return False
        window: dict[int, Acceptance] = {}
        for (load, accepted), num in self._open.items():
            window[load] = window.get(load, Acceptance()) + Acceptance(num, num * accepted, num * accepted**2)
        self._full.append(window)
        self.last, self.num_full, self._open = window, self.num_full + 1, Counter()
        return True
