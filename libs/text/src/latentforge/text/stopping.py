"""Ends the encoding of a long text when whoever asked for it is gone.

A tokenizer cannot be interrupted. So where this is on, a long text is encoded a piece at a time (see
:mod:`latentforge.text.long_texts`, which says when the ids are the same), with a look between two.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


class EncodingStoppedError(Exception):
    """Nobody waits for the ids any more."""


@contextmanager
def stoppable(stopped: threading.Event) -> Iterator[None]:
    """What is encoded within, in this thread, ends soon after ``stopped`` is set."""
    token = _stopped.set(stopped)
    try:
        yield
    finally:
        _stopped.reset(token)


def is_stoppable() -> bool:
    """Whether encoding looks for a stop."""
    return _stopped.get() is not None


def check() -> None:
    """Raises EncodingStoppedError after a stop."""
    if (stopped := _stopped.get()) is not None and stopped.is_set():
        raise EncodingStoppedError
