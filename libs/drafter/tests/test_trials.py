"""Which way is taken, by what each was measured to give."""

from latentforge.drafter.trials import DraftTrials


def taken(trials: DraftTrials, steps: int, texts: int, pace_with: float, pace_alone: float) -> list[bool]:
    """What is chosen of an engine that writes so many tokens a second with drafts and without."""
    chosen = []
    for _ in range(steps):
        chosen.append(trials.pays(texts))
        trials.observe(texts, 2, 2 / (pace_with if chosen[-1] else pace_alone), drafted=chosen[-1])
    return chosen


def test_both_ways_are_tried_and_the_faster_one_is_taken() -> None:
    slower = taken(DraftTrials(), 640, 8, pace_with=70, pace_alone=100)
    assert slower[:16] == [True] * 16
    assert slower[16:32] == [False] * 16
    # Now and then drafting is tried again.
    assert 0 < sum(slower[32:]) <= 0.04 * len(slower)
    faster = taken(DraftTrials(), 640, 1, pace_with=140, pace_alone=100)
    assert 0 < 608 - sum(faster[32:]) <= 0.04 * len(faster)


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
