"""On whose behalf the gateway works, for its turns and its quota. Transports say who; everything behind them asks here.

with calling_as(Caller("trainer", share=2.0)):
    await teacher.score(…)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from latentforge.gateway.scoring.quota import TokenQuota


@dataclass(frozen=True)
class Caller:
    """Somebody who takes turns with others.

    Attributes:
        name: the key's name, or the connection where keys have none.
        share: how much he gets beside others who wait: twice the share is twice the tokens.
        quota: bounds what he has the teacher compute; None for no bound.
        named: he has a key with a name, which metrics may show.
    """

    name: str
    share: float = 1.0
    quota: TokenQuota | None = None
    named: bool = False


# Whoever came by no transport, as the gateway itself.
_NOBODY = Caller("")
_current: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def current_caller() -> Caller:
    """Whom this task works for."""
    return _current.get()


@contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """What is begun within is done for ``caller``, tasks included that are started within."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
