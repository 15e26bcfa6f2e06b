"""Which way is taken, by what each was measured to give."""

import pytest

from latentforge.drafter.trials import DraftTrials, StepPace


def taken(trials: DraftTrials, steps: int, texts: int, pace_with: float, pace_alone: float) -> list[bool]:
    """What is chosen of an engine that writes so many tokens a second with drafts and without."""
    chosen = []
    for _ in range(steps):
        chosen.append(trials.pays(texts))
        trials.observe(texts, 2, 2 / (pace_with if chosen[-1] else pace_alone), asked=chosen[-1])
    return chosen


def test_both_ways_are_tried_and_the_faster_one_is_taken() -> None:
    slower = taken(DraftTrials(), 640, 1, pace_with=40, pace_alone=100)
    assert slower[:8] == [False] * 8
    assert slower[8:16] == [True] * 8
    # Now and then the student is asked again.
    assert sum(slower[16:]) == 2 * 4
    faster = taken(DraftTrials(), 640, 1, pace_with=140, pace_alone=100)
    assert 624 - sum(faster[16:]) == 2 * 4


def test_where_it_may_be_chance_the_slower_one_is_tried_more_often_until_enough_is_known() -> None:
    near = taken(DraftTrials(), 4000, 1, pace_with=110, pace_alone=100)
    # After 8 steps of each a tenth may be chance: every 16 steps four, until 64 are known.
    assert 224 - sum(near[16:240]) == 13 * 4 + 1
    assert 640 - sum(near[3360:]) == 640 // 64 * 4


def test_many_texts_say_as_much_in_fewer_steps() -> None:
    many = taken(DraftTrials(), 640, 16, pace_with=60, pace_alone=100)
    assert many[:4] == [False, False, True, True]
    assert sum(many[4:]) == 2 * 2
    some = taken(DraftTrials(), 640, 3, pace_with=30, pace_alone=100)
    assert some[:8] == [False] * 4 + [True] * 4
    assert sum(some[8:]) == 2 * 2


def test_a_bad_beginning_is_made_up_for_soon() -> None:
    trials = DraftTrials()
    taken(trials, 16, 1, pace_with=90, pace_alone=100)
    assert sum(taken(trials, 100, 1, pace_with=160, pace_alone=100)) >= 60


def test_a_first_step_that_compiles_does_not_decide() -> None:
    trials = DraftTrials()
    for _ in range(8):
        trials.observe(1, 2, 0.02, asked=False)
    trials.observe(1, 2, 30.0, asked=True)
    assert sum(taken(trials, 200, 1, pace_with=140, pace_alone=100)) >= 150


def test_a_pace_is_of_the_last_steps() -> None:
    pace = StepPace()
    assert pace.rate == 0.0
    for seconds in [1.0] * 200 + [0.5] * 64:
        pace.observe(2, seconds)
    assert pace.rate == pytest.approx(4)
    pace.observe(2, 0.5)
    assert len(pace) == 64


def test_the_rate_of_the_faster_way_is_told() -> None:
    trials = DraftTrials()
    assert trials.rate(3) == 0.0
    taken(trials, 100, 3, pace_with=140, pace_alone=100)
    assert trials.rate(2) == pytest.approx(140)
    taken(trials, 100, 1, pace_with=70, pace_alone=100)
    assert trials.rate(1) == pytest.approx(100)
    assert trials.rate(4) == 0.0


def test_it_is_chosen_for_as_many_texts_as_there_are() -> None:
    trials = DraftTrials()
    taken(trials, 200, 1, pace_with=140, pace_alone=100)
    taken(trials, 200, 8, pace_with=70, pace_alone=100)
    one, many = (taken(trials, 100, texts, *paces) for texts, paces in ((1, (140, 100)), (9, (70, 100))))
    assert sum(one) > 90
    assert sum(many) < 10


def test_what_becomes_faster_is_found() -> None:
    trials = DraftTrials()
    taken(trials, 300, 8, pace_with=70, pace_alone=100)
    later = taken(trials, 4000, 8, pace_with=200, pace_alone=100)
    assert sum(later[-500:]) > 450
