"""Which tokens pay."""

import random

import pytest

from latentforge.drafter.speed import DraftSpeed


def measured(alone: float, token: float, draft: float, texts: int, accepted: float, seed: int = 0) -> DraftSpeed:
    """What a drafter learns of an engine whose passes take ``alone + token·n`` seconds, with noise."""
    rng, speed = random.Random(seed), DraftSpeed()
    for _ in range(300):
        num_drafted = rng.randint(0, 8 * texts)
        seconds = (alone + token * (texts + num_drafted)) * rng.uniform(0.95, 1.05)
        speed.observe_pass(texts + num_drafted, seconds, round(texts + accepted * num_drafted))
        speed.observe_draft(num_drafted, draft * num_drafted)
    return speed


def test_what_a_token_more_costs_is_found() -> None:
    speed = measured(0.03, 0.002, 0.001, texts=2, accepted=0.4)
    assert speed.token_seconds == pytest.approx(0.002, rel=0.15)
    assert speed.pass_seconds(9) == pytest.approx(0.03 + 9 * 0.002, rel=0.1)


def test_a_token_pays_where_it_is_worth_the_time() -> None:
    speed = measured(0.03, 0.002, 0.001, texts=1, accepted=0.4)
    # In a token's 3 ms an engine that writes (1 + 0.4·4) tokens in 30 + 5·2 + 4·1 ms writes 0.18 others.
    assert speed.least == pytest.approx(0.003 * 2.6 / 0.044, rel=0.2)


def test_the_more_are_written_at_once_the_less_pays() -> None:
    leasts = [measured(0.03, 0.002, 0.001, texts, accepted=0.3).least for texts in (1, 4, 16, 64)]
    assert leasts == sorted(leasts)
    assert leasts[-1] > 3 * leasts[0]


def test_before_anything_is_measured_all_is_drafted() -> None:
    speed = DraftSpeed()
    assert speed.least == 0.0
    speed.observe_draft(5, 0.01)
    assert speed.least == 0.0


def test_passes_of_one_length_leave_the_guess() -> None:
    speed = DraftSpeed()
    for _ in range(50):
        speed.observe_pass(9, 0.07, 3)
        speed.observe_draft(8, 0.008)
    assert speed.token_seconds == pytest.approx(0.05 * 0.07 / 1.4, rel=0.01)


def test_a_pass_that_had_something_else_to_do_does_not_count() -> None:
    speed = measured(0.03, 0.002, 0.001, texts=1, accepted=0.4)
    least = speed.least
    speed.observe_pass(3, 30.0, 1)
    assert speed.least == least


def test_what_costs_nothing_is_drafted_at_small_chances_and_what_costs_all_hardly_ever() -> None:
    assert measured(0.03, 0.0, 1e-7, texts=1, accepted=0.2).least == 0.02
    assert measured(0.0001, 0.05, 0.01, texts=1, accepted=1.0).least == 0.95
