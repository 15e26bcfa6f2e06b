"""What of a step is put on the clock, and what is left out."""

from latentforge.drafter.steps import GoneOn, Least, StepClock


class Steps:
    """Steps of one text, with the seconds that each takes.

    Args:
        is_warm: the first drafts lie behind them.
    """

    def __init__(self, *, is_warm: bool = True) -> None:
        self.now = 0.0
        self.clock = StepClock(lambda: self.now)
        self.drafts: list[tuple[int, float]] = []
        self.passes: list[tuple[int, float]] = []
        self.clock.speed.drafts.observe = lambda *said: self.drafts.append(said)  # type: ignore[method-assign]
        self.clock.speed.passes.observe = lambda *said: self.passes.append(said)  # type: ignore[method-assign]
        for _ in range(4 * is_warm):
            self.step(None, 1, drafting=0.0, passing=0.0)

    def step(
        self, gone_on: GoneOn | None, drafted: int | None, drafting: float, passing: float, pays: bool = True
    ) -> None:
        """One: what lies behind it, the student's tokens, and how long drafting and the pass behind it take."""
        self.clock.trials.pays = lambda num_texts: pays  # type: ignore[method-assign]
        self.clock.begin(gone_on)
        self.clock.choose(1)
        self.now += drafting
        self.clock.end(drafted)
        self.now += passing


def test_a_pass_and_a_draft_are_timed_apart() -> None:
    steps = Steps()
    # The first reads the prompt.
    steps.step(None, 4, drafting=9.0, passing=2.0)
    steps.step(GoneOn(1, 5, 3), 6, drafting=1.0, passing=4.0)
    # The pass behind that one also read somebody's prompt, and so did this draft.
    steps.step(None, 2, drafting=7.0, passing=2.5)
    steps.step(GoneOn(1, 3, 1), 1, drafting=0.5, passing=1.0)
    assert steps.passes == [(5, 2.0), (3, 2.5)]
    assert steps.drafts == [(6, 1.0), (1, 0.5)]


def test_a_draft_that_reads_what_had_come_while_there_were_none_is_not_timed() -> None:
    steps = Steps()
    steps.step(None, 4, drafting=1.0, passing=2.0)
    steps.step(GoneOn(1, 5, 3), None, drafting=0.1, passing=2.0, pays=False)
    assert not steps.clock.asks_student
    steps.step(GoneOn(1, 1, 1), 5, drafting=3.0, passing=2.0)
    steps.step(GoneOn(1, 6, 2), 7, drafting=1.5, passing=2.0)
    assert steps.drafts == [(7, 1.5)]


def test_no_threshold_is_named_where_the_student_is_not_to_be_asked() -> None:
    steps = Steps()
    steps.clock.trials.rate = lambda num_texts: 50.0  # type: ignore[method-assign]
    steps.clock.speed.least = lambda rate, looked_up: rate / (200 if looked_up else 100)  # type: ignore[method-assign,misc]
    steps.clock.trials.pays = lambda num_texts: False  # type: ignore[method-assign]
    assert steps.clock.choose(1) == Least(None, 0.25)
    steps.clock.trials.pays = lambda num_texts: True  # type: ignore[method-assign]
    assert steps.clock.choose(1) == Least(0.5, 0.25)


def test_a_step_in_which_all_drafts_are_looked_up_says_nothing_of_the_students() -> None:
    steps = Steps()
    steps.step(None, 4, drafting=1.0, passing=2.0)
    steps.step(GoneOn(1, 5, 3), None, drafting=0.5, passing=2.0)
    steps.step(GoneOn(1, 9, 9), 5, drafting=3.0, passing=2.0)
    assert steps.drafts == [(5, 3.0)]
    assert steps.passes == [(5, 2.0), (9, 2.0)]


def test_the_first_drafts_are_not_timed_and_their_steps_are_nobodys() -> None:
    steps = Steps(is_warm=False)
    paces: list[float] = []

    def noted(num_texts: int, num_tokens: int, seconds: float, *, asked: bool) -> None:
        paces.append(seconds)

    steps.clock.trials.observe = noted  # type: ignore[method-assign]
    for number in range(6):
        steps.step(GoneOn(1, 1, 1) if number else None, 1, drafting=9.0 - number, passing=1.0)
    assert steps.drafts == [(1, 5.0), (1, 4.0)]
    # The last one's pass is not over.
    assert paces == [6.0]
    assert len(steps.passes) == 5


def test_where_nobody_chooses_later_drafts_are_timed_all_the_same() -> None:
    steps = Steps(is_warm=False)
    for number in range(6):
        steps.clock.begin(GoneOn(1, 1, 1) if number else None)
        steps.now += 2.0
        steps.clock.end(1)
    assert steps.drafts == [(1, 2.0)] * 2
