from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import tenacity

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.retries import LONGEST_PAUSE_SECONDS, Tries, may_retry, pause, retrying_options

GONE = TeacherError(grpc.StatusCode.UNAVAILABLE, "gone")
BUSY = TeacherError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=40.0)
TOO_LARGE = TeacherError(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")


def state_after(error: TeacherError, attempt: int) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    state.set_exception((type(error), error, None))
    return state


def test_pauses_grow_and_are_capped() -> None:
    pauses = [pause(state_after(GONE, attempt)) for attempt in range(1, 13)]
    assert all(0.5 * 0.2 * 2**i <= seconds <= 0.2 * 2**i for i, seconds in enumerate(pauses[:6]))
    assert LONGEST_PAUSE_SECONDS / 2 <= pauses[-1] <= max(pauses) <= LONGEST_PAUSE_SECONDS


def test_who_has_tried_for_hours_is_given_a_pause_still() -> None:
    assert LONGEST_PAUSE_SECONDS / 2 <= pause(state_after(GONE, 2000)) <= LONGEST_PAUSE_SECONDS


def test_who_lost_the_gateway_at_the_same_time_does_not_come_back_at_the_same_time() -> None:
    assert len({pause(state_after(GONE, 4)) for _ in range(20)}) > 10


def test_the_gateway_says_when_to_come_back() -> None:
    pauses = [pause(state_after(BUSY, attempt)) for attempt in range(1, 21)]
    # Never before, and a little later than the others who were told the same.
    assert 40.0 <= min(pauses) < max(pauses) <= 44.0


@pytest.mark.parametrize("named", [0.0, 0.001])
def test_a_gateway_that_names_hardly_a_pause_is_not_stormed(named: float) -> None:
    busy = TeacherError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=named)
    pauses = [pause(state_after(busy, attempt)) for attempt in range(1, 13)]
    assert all(0.5 * 0.2 * 2**i <= seconds <= 0.2 * 2**i for i, seconds in enumerate(pauses[:6]))
    assert pauses[-1] >= LONGEST_PAUSE_SECONDS / 2


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (GONE, True),
        (BUSY, True),
        (TOO_LARGE, False),
        (TeacherError(grpc.StatusCode.INVALID_ARGUMENT, "bad"), False),
        (TeacherError(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), False),
        (ValueError("ours"), False),
    ],
)
def test_only_what_may_succeed_in_a_moment_is_tried_again(error: Exception, again: bool) -> None:
    assert may_retry(error) is again


class Flaky:
    """Fails so many times."""

    def __init__(self, failures: int, error: Exception = GONE) -> None:
        self.left, self.calls, self.error = failures, 0, error

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept; the clock of retries alone moves on by that.

    A clock set back for the whole process lets every event loop that a session's server runs sleep for hours.
    """
    naps: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0 + sum(naps), sleep=naps.append)
    for module in ("latentforge.teacher_client.retries", "tenacity.nap"):
        monkeypatch.setattr(f"{module}.time", clock)
    return naps


def tried(options: dict[str, Any], call: Flaky) -> str:
    answer: str = tenacity.Retrying(**options)(call)
    return answer


def test_a_call_has_so_many_tries(slept: list[float]) -> None:
    assert tried(Tries(600, 3).options(), Flaky(2)) == "answer"
    with pytest.raises(TeacherError, match="gone"):
        tried(Tries(600, 3).options(), call := Flaky(3))
    assert call.calls == 3
    assert len(slept) == 4


def test_one_try_is_never_followed_by_another(slept: list[float]) -> None:
    with pytest.raises(TeacherError, match="gone"):
        tried(Tries(600, 1).options(), call := Flaky(1))
    assert (call.calls, slept) == (1, [])


def test_a_pause_that_would_end_after_the_time_is_not_begun(slept: list[float]) -> None:
    tries = Tries(39.0, 5)
    with pytest.raises(TeacherError, match="busy"):
        tried(tries.options(), Flaky(1, BUSY))
    assert slept == []
    assert tries.seconds_left == 39.0
    tries = Tries(45.0, 5)
    assert tried(tries.options(), Flaky(1, BUSY)) == "answer"
    (nap,) = slept
    assert 40.0 <= nap <= 44.0
    assert tries.seconds_left == pytest.approx(45.0 - nap)


def test_who_is_more_patient_brings_a_stop_and_errors_of_their_own(slept: list[float]) -> None:
    options = retrying_options(lambda state: sum(slept) + state.upcoming_sleep > 100, lambda error: error is TOO_LARGE)
    with pytest.raises(TeacherError, match="larger than max"):
        tried(options, Flaky(1000, TOO_LARGE))
    assert 90 <= sum(slept) <= 100
    with pytest.raises(TeacherError, match="gone"):
        tried(options, Flaky(1))
