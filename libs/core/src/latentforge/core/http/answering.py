"""What a service says of a request whatever it was: its id in the answer, and method, route and status for the log."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Scope, Send

from latentforge.core.request_id import REQUEST_ID

OTHER = "other"
_METHODS = {"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"}


class Answering:
    """Sends an answer with the request's id.

    Attributes:
        status: that was sent, 0 before.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        await self._send(message)


def method_of(scope: Scope) -> str:
    """The request's method, or "other": what a caller may write there is anything."""
    method: str = scope["method"]
    return method if method in _METHODS else OTHER


def route_of(scope: Scope) -> str:
    """The route that answered, as ``/v1/models/{model}``; "other" where there is none."""
    path: Any = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else OTHER
