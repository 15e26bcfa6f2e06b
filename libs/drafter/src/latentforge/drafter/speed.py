"""Which chance of acceptance pays, by what passes and drafts were measured to take.

A pass over n tokens takes about a + b·n seconds, and to draft one d. One token more in a draft costs b + d; in that
time an engine that writes R tokens a second writes (b + d)·R. So it pays where it is accepted with a greater
probability. R counts the tokens of all texts: the more are written at once, the better a token's chance has to be,
until none is drafted.
"""

# Weight of what was known at each new observation: about the last hundred count.
_KEPT = 0.99
# Until lengths have differed, a token more in a pass is taken to cost so much of one with a single token.
_FIRST_SHARE = 0.05
_PRIOR_WEIGHT = 1.0
# A pass that took so many times as long as it should had something else to do.
_OUTLIER = 4.0
# Something is always tried, so that what has become worth while is found; and what is sure is always drafted.
_LEAST, _MOST = 0.02, 0.95


class DraftSpeed:
    """Measures an engine's passes and its drafts."""

    def __init__(self) -> None:
        # Weighted sums of 1, n, n², s and n·s over passes of n tokens that took s seconds.
        self._ones = self._tokens = self._squares = self._seconds = self._products = 0.0
        self._written = self._drafted = self._draft_seconds = 0.0
        self._first = 0.0

    def observe_pass(self, num_tokens: int, seconds: float, num_written: int) -> None:
        """A pass over so many tokens of all texts took so long, and they are so many tokens longer for it."""
        if self._ones and seconds > _OUTLIER * self.pass_seconds(num_tokens):
            return
        if not self._first:
            self._first = seconds / (1 + _FIRST_SHARE * (num_tokens - 1))
        self._ones = _KEPT * self._ones + 1
        self._tokens = _KEPT * self._tokens + num_tokens
        self._squares = _KEPT * self._squares + num_tokens**2
        self._seconds = _KEPT * self._seconds + seconds
        self._products = _KEPT * self._products + num_tokens * seconds
        self._written = _KEPT * self._written + num_written

    def observe_draft(self, num_tokens: int, seconds: float) -> None:
        """To draft so many tokens of all texts together took so long."""
        self._drafted = _KEPT * self._drafted + num_tokens
        self._draft_seconds = _KEPT * self._draft_seconds + seconds

    def pass_seconds(self, num_tokens: int) -> float:
        """How long a pass over so many tokens is expected to take."""
        mean = self._seconds / self._ones
        return max(mean / _OUTLIER, mean + self.token_seconds * (num_tokens - self._tokens / self._ones))

    @property
    def token_seconds(self) -> float:
        """b: what one token more makes a pass longer; least squares, drawn to the first guess."""
        mean_tokens, mean_seconds = self._tokens / self._ones, self._seconds / self._ones
        spread = self._squares / self._ones - mean_tokens**2
        together = self._products / self._ones - mean_tokens * mean_seconds
        guess = _FIRST_SHARE * self._first
        weight = _PRIOR_WEIGHT / self._ones
        return max(0.0, (together + weight * guess) / (spread + weight))

    @property
    def least(self) -> float:
        """The least chance of acceptance with which a token is worth drafting; 0 before anything was measured."""
        if not self._ones or not self._drafted:
            return 0.0
        rate = self._written / (self._seconds + self._draft_seconds)
        cost = self.token_seconds + self._draft_seconds / self._drafted
        return min(max(cost * rate, _LEAST), _MOST)
