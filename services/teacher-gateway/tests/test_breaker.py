from typing import Any

import pytest

from latentforge.gateway.breaker import Breaker


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> list[bool]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[bool]) -> Breaker:
    return Breaker(3, 30.0, 30.0, on_change=changes.append, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_it_opens_at_the_last_failure_that_may_be_and_stays_open(breaker: Any, clock: Clock, changes: Any) -> None:
    fail(breaker, 2)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open
    assert not breaker.allows()
    clock.now += 29.9
    assert not breaker.allows()
    assert breaker.seconds_left == pytest.approx(0.1)
    assert changes == [True]


def test_failures_that_are_long_ago_do_not_count(breaker: Any, clock: Clock) -> None:
    for _ in range(10):
        fail(breaker, 1)
        clock.now += 15.1
    assert not breaker.is_open


def test_successes_in_between_do_not_make_up_for_failures(breaker: Any) -> None:
    for _ in range(2):
        fail(breaker, 1)
        breaker.succeeded()
    fail(breaker, 1)
    assert breaker.is_open


def test_one_try_is_let_through_after_the_pause_and_its_success_closes(
    breaker: Any, clock: Clock, changes: Any
) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert not breaker.is_open
    assert changes == [True, False]
    fail(breaker, 2)
    assert not breaker.is_open


def test_a_failed_try_opens_it_for_another_pause(breaker: Any, clock: Clock, changes: Any) -> None:
    fail(breaker, 3)
    clock.now += 30
    fail(breaker, 1)
    assert not breaker.allows()
    clock.now += 29
    assert not breaker.allows()
    clock.now += 1
    assert breaker.allows()
    assert changes == [True]


def test_a_cancelled_try_lets_the_next_one_through(breaker: Any, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.allows()
    breaker.abandoned()
    assert breaker.is_open
    assert breaker.allows()


def test_a_request_that_began_before_does_not_close_it_early(breaker: Any, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 5
    breaker.succeeded()
    assert breaker.is_open
    assert not breaker.allows()


def test_one_that_never_opens_lets_every_try_through() -> None:
    never = Breaker.never_opening()
    fail(never, 10_000)
    assert not never.is_open
