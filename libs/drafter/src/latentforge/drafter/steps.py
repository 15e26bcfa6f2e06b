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


class Least(NamedTuple):
    """The least chance of acceptance with which a token is to be drafted.

    Attributes:
        student: of one that the student drafts; None where it is not to be asked.
        lookup: of one that is looked up.
    """

    student: float | None
    lookup: float


class StepClock:
    """Measures steps, and says by that whether the student is to draft in the next one, and how sure drafts must be.

    Args:
        clock: gives seconds that never run backwards.

    Attributes:
        speed, trials: what was measured.
        asks_student: whether the student was to draft in the last step.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.speed, self.trials = DraftSpeed(), DraftTrials()
        self.asks_student = True
        self._clock = clock
        self._began = self._ended = 0.0
        self._has_gone_on = False
        self._num_asked = 0
        # The last draft did what later ones need not: read all that had come while there were none, or warm up.
        self._did_more = False

    def begin(self, gone_on: GoneOn | None) -> None:
        """A step begins; the pass behind the last one did ``gone_on``, or something else as well."""
        now = self._clock()
        self._has_gone_on = gone_on is not None
        if gone_on is not None:
            self.speed.passes.observe(gone_on.read, now - self._ended)
            if not self._did_more:
                self.trials.observe(gone_on.texts, gone_on.written, now - self._began, asked=self.asks_student)
        self._began, self._did_more = now, False

    def choose(self, num_texts: int, *, may_ask: bool = True) -> Least:
        """What the step that begins is to draft; ``may_ask``: the student, where that pays."""
        asked_before, self.asks_student = self.asks_student, may_ask and self.trials.pays(num_texts)
        self._did_more = self.asks_student and not asked_before
        rate = self.trials.rate(num_texts)
        student = self.speed.least(rate, looked_up=False) if self.asks_student else None
        return Least(student, self.speed.least(rate, looked_up=True))

    def end(self, num_drafted: int | None) -> None:
        """The drafts are there, so many tokens of the student's together; None where it was not asked."""
        self._ended = self._clock()
        if num_drafted is None:
            return
        self._num_asked += 1
        self._did_more |= self._num_asked <= _COLD
        if self._has_gone_on and not self._did_more:
            self.speed.drafts.observe(num_drafted, self._ended - self._began)
