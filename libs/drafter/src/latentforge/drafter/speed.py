"""Which chance of acceptance pays, by what passes and drafts were measured to take.

A pass over n tokens takes about a + b·n seconds, a draft of n tokens c + d·n. One token more in a draft costs b + d; in
that time an engine that writes R tokens a second writes (b + d)·R. So it pays where it is accepted with a greater
probability. R counts the tokens of all texts: the more are written at once, the better a token's chance has to be,
until none is drafted. Whether a draft is worth c, too, is for :mod:`latentforge.drafter.trials` to find out.
"""

# Weight of what was known at each new observation: about the last hundred count.
_KEPT = 0.99
# Until lengths have differed, a token more is taken to cost so much of what the first observation would with one.
_FIRST_SHARE = 0.05
_PRIOR_WEIGHT = 1.0
# What took longer than so many times as it should had something else to do, and counts as that.
_OUTLIER = 4.0
# Something is always tried, so that what has become worth while is found; and what is sure is always drafted.
_LEAST, _MOST = 0.02, 0.95


class SecondsByTokens:
    """Seconds over tokens: a line by least squares, its slope drawn to a first guess."""

    def __init__(self) -> None:
        # Weighted sums of 1, n, n², s and n·s over observations of n tokens that took s seconds.
        self._ones = self._tokens = self._squares = self._seconds = self._products = 0.0
        self._first = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was observed."""
        return not self._ones

    def observe(self, num_tokens: int, seconds: float) -> None:
        """So many tokens took so long."""
        if self.is_empty:
            self._first = seconds / (1 + _FIRST_SHARE * (num_tokens - 1))
        else:
            seconds = min(seconds, _OUTLIER * self.expected(num_tokens))
        self._ones = _KEPT * self._ones + 1
        self._tokens = _KEPT * self._tokens + num_tokens
        self._squares = _KEPT * self._squares + num_tokens**2
        self._seconds = _KEPT * self._seconds + seconds
        self._products = _KEPT * self._products + num_tokens * seconds

    def expected(self, num_tokens: int) -> float:
        """Seconds of so many tokens."""
        mean = self._seconds / self._ones
        return max(mean / _OUTLIER, mean + self.slope * (num_tokens - self._tokens / self._ones))

    @property
    def slope(self) -> float:
        """Seconds of one token more."""
        mean_tokens, mean_seconds = self._tokens / self._ones, self._seconds / self._ones
        spread = self._squares / self._ones - mean_tokens**2
        together = self._products / self._ones - mean_tokens * mean_seconds
        weight = _PRIOR_WEIGHT / self._ones
        return max(0.0, (together + weight * _FIRST_SHARE * self._first) / (spread + weight))


class DraftSpeed:
    """Measures an engine's passes and its drafts.

    Attributes:
        passes: seconds by tokens of all texts.
        drafts: the same of drafting by the student, with what had to be read for it.
    """

    def __init__(self) -> None:
        self.passes, self.drafts = SecondsByTokens(), SecondsByTokens()

    def least(self, rate: float, *, looked_up: bool) -> float:
        """The least chance of acceptance with which a token is worth drafting; 0 before a pass was measured.

        Args:
            rate: tokens a second that the engine writes at its fastest.
            looked_up: of a token that nobody has to compute.
        """
        if self.passes.is_empty:
            return 0.0
        drafting = 0.0 if looked_up or self.drafts.is_empty else self.drafts.slope
        return min(max((self.passes.slope + drafting) * rate, _LEAST), _MOST)
