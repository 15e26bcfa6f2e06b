"""Whether the student's drafts pay at all: with them and without, tried in turns, for as many texts as there are.

:mod:`latentforge.drafter.speed` says which token of a draft pays. But a student that drafts nothing has read every new
token all the same, and beside many texts that alone can take longer than what is gained. So an engine's pace is
measured both ways, and now and then the way that is slower is tried again. Without them there are still the drafts that
are looked up.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

# Steps that are remembered of each way.
_REMEMBERED = 64
# What took longer than so many times the usual counts as that: a first step compiles, a machine has other work.
_OUTLIER = 3.0
# Of so many steps, a turn is of the slower way: seldom where that is sure, often where it may be chance.
_SURE, _OPEN, _CLOSE = 256, 16, 64
# One text's steps of each way before one is chosen, and of a turn. Many texts say as much in fewer; but the first of a
# turn is not measured.
_FIRST, _TURN, _LEAST = 8, 4, 2
# What a step gives with drafts is one token or up to nine: twice its deviation for one text, over the mean.
_SPREAD = 1.5


class StepPace:
    """Tokens a second over the last steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._steps)

    def observe(self, tokens: int, seconds: float) -> None:
        """A step gave so many tokens in so many seconds."""
        self._steps.append((tokens, seconds))

    @property
    def rate(self) -> float:
        """0 before the first step."""
        if not self._steps:
            return 0.0
        longest = _OUTLIER * statistics.median(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / sum(min(seconds, longest) for _, seconds in self._steps)


@dataclass
class _Trial:
    """Of about so many texts.

    Attributes:
        texts: the fewest of them.
        asked, unasked: what both ways gave, by whether the student was to draft.
        steps: since both were known.
        left: steps of the slower way that are left of its turn.
    """

    texts: int
    asked: StepPace = field(default_factory=StepPace)
    unasked: StepPace = field(default_factory=StepPace)
    steps: int = 0
    left: int = 0

    def next(self) -> bool:
        # Unasked first: what that gives says how sure the first drafts must be, which beside many texts cost the most.
        first = max(_LEAST, _FIRST // self.texts)
        if len(self.unasked) < first:
            return False
        if len(self.asked) < first:
            return True
        gain = self.asked.rate / self.unasked.rate - 1
        self.steps += 1
        if self.steps % self._period(gain) == 0:
            self.left = max(_LEAST, _TURN // self.texts)
        is_turn = self.left > 0
        self.left = max(0, self.left - 1)
        return (gain >= 0) != is_turn

    def _period(self, gain: float) -> int:
        if abs(gain) >= _SPREAD / math.sqrt(len(self.asked) * self.texts):
            return _SURE
        # As much as is remembered cannot tell them apart: then they hardly are.
        slower = self.unasked if gain >= 0 else self.asked
        return _OPEN if len(slower) < _REMEMBERED else _CLOSE


class DraftTrials:
    """Chooses step by step."""

    def __init__(self) -> None:
        self._trials: dict[int, _Trial] = {}

    def pays(self, num_texts: int) -> bool:
        """Whether the student is to draft in the next step; each question counts as a step."""
        return self._of(num_texts).next()

    def rate(self, num_texts: int) -> float:
        """Tokens a second that an engine writes the faster way; 0 before it wrote any."""
        trial = self._of(num_texts)
        return max(trial.asked.rate, trial.unasked.rate)

    def observe(self, num_texts: int, num_tokens: int, seconds: float, *, asked: bool) -> None:
        """A step of so many texts, its drafting included, gave so many tokens in so many seconds."""
        trial = self._of(num_texts)
        (trial.asked if asked else trial.unasked).observe(num_tokens, seconds)

    def _of(self, num_texts: int) -> _Trial:
        # 1; 2 and 3; 4 to 7; and so on.
        bits = num_texts.bit_length()
        return self._trials.setdefault(bits, _Trial(max(1, 1 << bits >> 1)))
