"""Waiting for a server that may still be starting."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Failures of a server that is not there yet, or is there no more.
NOT_YET = (FailureKind.GONE, FailureKind.TOO_SLOW)
_TIMEOUT_SECONDS = 10.0
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_LINES = 15.0


async def patiently(api: Api, limit: float, metrics: Metrics, look: Callable[[Upstream], Awaitable[T]], hint: str) -> T:
    """What ``look`` finds, which is asked again while the server does not answer.

    Args:
        limit: seconds.
        hint: what to do about a server that is not there.

    Raises:
        BackendError: ``limit`` has passed, or the server refuses.
    """
    started = said = time.monotonic()
    impatient = replace(api, attempts=1, timeout=_TIMEOUT_SECONDS)
    upstream = Upstream(impatient, Breaker.never_opening(), metrics)
    try:
        while True:
            try:
                return await look(upstream)
            except BackendError as error:
                waited = time.monotonic() - started
                if error.kind not in NOT_YET:
                    raise
                if waited + _SECONDS_BETWEEN_LOOKS > limit:
                    raise BackendError(f"{error}; {hint} or set {api.url_setting}", FailureKind.GONE) from None
                if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    logger.info("waiting for %s since %.0f s (at most %g s): %s", api.name, waited, limit, error)
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        await upstream.close()
