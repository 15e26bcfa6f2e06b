"""An engine's steps on the clock: a draft, the teacher's pass behind it, and what both say of the next one."""

from collections.abc import Callable
from typing import NamedTuple

from latentforge.drafter.speed import DraftSpeed
from latentforge.drafter.trials import DraftTrials

# The first drafts of a process take up to a hundred times as long: kernels are chosen, memory is touched.
_COLD = 4


class GoneOn(NamedTuple):
    """What a pass did that went on with the texts of the last step, and with nothing else.

    Attributes:
        texts: how many.
        read: tokens that the teacher read: each text's newest, and its draft.
        written: tokens by which they are longer.
    """

    texts: int
    read: int
    written: int


class StepClock:
    """Measures steps, and says by that whether the next one is to have drafts, and how sure these must be.

    Args:
        clock: gives seconds that never run backwards.

    Attributes:
        speed, trials: what was measured.
        is_drafting: whether the last step was to have drafts.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.speed, self.trials = DraftSpeed(), DraftTrials()
        self.is_drafting = True
        self._clock = clock
        self._began = self._ended = 0.0
        self._has_gone_on = False
        self._num_drafting = 0
        # The last draft did what later ones need not: read all that had come while there were none, or warm up.
        self._did_more = False

    def begin(self, gone_on: GoneOn | None) -> None:
        """A step begins; the pass behind the last one did ``gone_on``, or something else as well."""
        now = self._clock()
        self._has_gone_on = gone_on is not None
        if gone_on is not None:
            self.speed.passes.observe(gone_on.read, now - self._ended)
            if not self._did_more:
                self.trials.observe(gone_on.texts, gone_on.written, now - self._began, drafted=self.is_drafting)
        self._began = now

    def choose(self, num_texts: int) -> float | None:
        """The least chance of acceptance with which a token is to be drafted; None for no drafts at all."""
        was_drafting, self.is_drafting = self.is_drafting, self.trials.pays(num_texts)
        self._num_drafting += self.is_drafting
        self._did_more = self.is_drafting and (not was_drafting or self._num_drafting <= _COLD)
        return self.speed.least(self.trials.rate(num_texts)) if self.is_drafting else None

    def end(self, num_drafted: int) -> None:
        """The drafts are there, so many tokens together."""
        self._ended = self._clock()
        if self.is_drafting and self._has_gone_on and not self._did_more:
            self.speed.drafts.observe(num_drafted, self._ended - self._began)
