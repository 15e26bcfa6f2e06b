"""Which tokens pay."""

import random

import pytest

from latentforge.drafter.speed import DraftSpeed, SecondsByTokens


def measured(alone: float, token: float, fixed: float, draft: float, texts: int = 1, seed: int = 0) -> DraftSpeed:
    """What is learnt of passes that take ``alone + token·n`` seconds and drafts of ``fixed + draft·n``, with noise."""
    rng, speed = random.Random(seed), DraftSpeed()
    for _ in range(300):
        drafted = rng.randint(0, 8 * texts)
        speed.passes.observe(texts + drafted, (alone + token * (texts + drafted)) * rng.uniform(0.95, 1.05))
        speed.drafts.observe(drafted, (fixed + draft * drafted) * rng.uniform(0.95, 1.05))
    return speed


def test_what_a_token_more_costs_is_found_apart_from_what_each_step_does() -> None:
    speed = measured(0.03, 0.002, 0.004, 0.001, texts=2)
    assert speed.passes.slope == pytest.approx(0.002, rel=0.15)
    assert speed.passes.expected(9) == pytest.approx(0.03 + 9 * 0.002, rel=0.1)
    assert speed.drafts.slope == pytest.approx(0.001, rel=0.15)


def test_a_token_pays_where_it_is_worth_the_time_and_the_drafts_fixed_cost_does_not_count() -> None:
    # In a token's 3 ms an engine of 60 tokens a second writes 0.18 others.
    for fixed in (0.0, 0.004, 0.02):
        assert measured(0.03, 0.002, fixed, 0.001).least(60, looked_up=False) == pytest.approx(0.18, rel=0.2)


def test_the_more_an_engine_writes_the_less_pays() -> None:
    speed = measured(0.03, 0.002, 0.004, 0.001)
    assert speed.least(240, looked_up=False) == pytest.approx(4 * speed.least(60, looked_up=False))


def test_before_a_pass_is_measured_all_is_drafted_and_before_a_draft_is_by_the_passes_alone() -> None:
    speed = DraftSpeed()
    speed.drafts.observe(5, 0.01)
    assert speed.least(100, looked_up=False) == 0.0
    speed = DraftSpeed()
    speed.passes.observe(1, 0.03)
    assert speed.least(100, looked_up=False) == pytest.approx(0.05 * 0.03 * 100)


def test_one_length_leaves_the_guess() -> None:
    line = SecondsByTokens()
    for _ in range(50):
        line.observe(9, 0.07)
    assert line.slope == pytest.approx(0.05 * 0.07 / 1.4, rel=0.01)


def test_what_had_something_else_to_do_hardly_counts() -> None:
    speed = measured(0.03, 0.002, 0.004, 0.001)
    before = speed.passes.expected(3)
    speed.passes.observe(3, 30.0)
    assert speed.passes.expected(3) == pytest.approx(before, rel=0.1)


def test_a_slow_beginning_is_forgotten() -> None:
    line = SecondsByTokens()
    line.observe(9, 20.0)
    for _ in range(500):
        line.observe(9, 0.04)
        line.observe(1, 0.03)
    assert line.expected(9) == pytest.approx(0.04, rel=0.05)


def test_what_costs_nothing_is_drafted_at_small_chances_and_what_costs_all_hardly_ever() -> None:
    assert measured(0.03, 0.0, 0.0, 1e-7).least(60, looked_up=False) == 0.02
    assert measured(0.0001, 0.05, 0.0, 0.01).least(60, looked_up=False) == 0.95


def test_what_is_looked_up_costs_the_pass_alone() -> None:
    speed = measured(0.03, 0.002, 0.004, 0.001)
    assert speed.least(60, looked_up=True) == pytest.approx(0.12, rel=0.2)
