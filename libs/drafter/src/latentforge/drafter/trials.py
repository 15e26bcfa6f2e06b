"""Whether drafting pays at all: with drafts and without, tried in turns, for as many texts as there are.

:mod:`latentforge.drafter.speed` says which token of a draft pays. But a drafter that drafts nothing has read every new
token all the same, and beside many texts that alone can take longer than what is gained. So an engine's pace is
measured both ways, and now and then the way that is slower is tried again.
"""

from dataclasses import dataclass, field

# Weight of what was known at each new observation.
_KEPT = 0.99
# Steps of each way before one is chosen.
_FIRST = 16
# Of so many steps, this many are of the slower way.
_PERIOD, _TRIED = 128, 4


@dataclass
class _Pace:
    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        self.steps += 1
        self.tokens = _KEPT * self.tokens + tokens
        self.seconds = _KEPT * self.seconds + seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class _Trial:
    """Of about so many texts."""

    drafting: _Pace = field(default_factory=_Pace)
    alone: _Pace = field(default_factory=_Pace)
    steps: int = 0

    @property
    def is_better_with(self) -> bool:
        return self.drafting.rate >= self.alone.rate

    def next(self) -> bool:
        self.steps += 1
        if self.drafting.steps < _FIRST:
            return True
        if self.alone.steps < _FIRST:
            return False
        return self.is_better_with != (self.steps % _PERIOD < _TRIED)


class DraftTrials:
    """Chooses step by step."""

    def __init__(self) -> None:
        self._trials: dict[int, _Trial] = {}

    def pays(self, num_texts: int) -> bool:
        """Whether the next step is to have drafts; each question counts as a step."""
        return self._of(num_texts).next()

    def observe(self, num_texts: int, num_tokens: int, seconds: float, *, drafted: bool) -> None:
        """A step of so many texts, its drafting included, gave so many tokens in so many seconds."""
        trial = self._of(num_texts)
        (trial.drafting if drafted else trial.alone).observe(num_tokens, seconds)

    def _of(self, num_texts: int) -> _Trial:
        # 1; 2 and 3; 4 to 7; and so on.
        return self._trials.setdefault(num_texts.bit_length(), _Trial())
