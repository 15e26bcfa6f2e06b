"""When a call to a gateway is made again: one policy, for both clients and for whoever is more patient than they."""

import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import tenacity

from latentforge.teacher_client.errors import TeacherError

MAX_ATTEMPTS = 5
LONGEST_PAUSE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.2
# What a pause that the gateway named is lengthened by at most, as a share of it.
_SPREAD = 0.1

Stop = Callable[[tenacity.RetryCallState], bool]
Wait = Callable[[tenacity.RetryCallState], float]


def may_retry(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    if not isinstance(error, TeacherError):
        return False
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a time to come back it is not load but a message that exceeds a cap.
        return error.retry_after is not None
    return error.code is grpc.StatusCode.UNAVAILABLE


def pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: twice as many each time, and never less than the gateway says, with some chance.

    Chance, since whoever lost the same gateway at the same time must not come back to it at the same time. A gateway
    that names a pause of nothing is not asked without one.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    named = (error.retry_after or 0.0) if isinstance(error, TeacherError) else 0.0
    # By then the pause is the longest; after a thousand tries the power would be more than a float holds.
    doublings = min(state.attempt_number - 1, 10)
    bound = min(LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0**doublings)
    return max(random.uniform(bound / 2, bound), named * random.uniform(1.0, 1.0 + _SPREAD))


def retrying_options(
    stop: Stop, again: Callable[[BaseException], bool] = may_retry, wait: Wait = pause
) -> dict[str, Any]:
    """Arguments of ``tenacity.Retrying`` and ``tenacity.AsyncRetrying``, which raise the last try's error.

    Args:
        stop: whether there is no further try; ``state.upcoming_sleep`` is the pause before it.
        again: whether an error is one after which to try again.
        wait: seconds until the next try.
    """
    return {"retry": tenacity.retry_if_exception(again), "wait": wait, "stop": stop, "reraise": True}


class Tries:
    """The tries of one call: so many without any progress, within so much time.

    Args:
        timeout: seconds for all of them together, pauses included.
        attempts: how many.
    """

    def __init__(self, timeout: float, attempts: int) -> None:
        self._deadline = time.monotonic() + timeout
        self._attempts = attempts

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def options(self, again: Callable[[BaseException], bool] = may_retry) -> dict[str, Any]:
        """As :func:`retrying_options`."""
        return retrying_options(self._stop, again)

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= self._attempts or state.upcoming_sleep >= self.seconds_left
