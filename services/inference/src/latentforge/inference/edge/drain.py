"""503 for what comes while the server ends."""

from starlette.types import ASGIApp, Receive, Scope, Send

from latentforge.inference.operation.drain import Drain
from latentforge.inference.rest.errors import RestError

# Whoever watches over a server wants to know of its end, too.
_ANSWERED = {"/health", "/ready", "/metrics", "/status"}
_RETRY_AFTER_SECONDS = 5


def ending() -> RestError:
    """What new requests are answered."""
    return RestError(
        503,
        "shutting_down",
        "the server is shutting down; send this to another, or again once it is back",
        headers={"retry-after": str(_RETRY_AFTER_SECONDS), "connection": "close"},
    )


class DrainGate:
    """Counts the requests that are being answered, and answers 503 to new ones once the drain has begun."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ANSWERED:
            await self.app(scope, receive, send)
            return
        if self._drain.begun:
            await ending().response()(scope, receive, send)
            return
        self._drain.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._drain.in_flight -= 1
