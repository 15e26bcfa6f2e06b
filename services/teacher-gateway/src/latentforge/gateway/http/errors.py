"""Refusals and failures as OpenAI's clients read them: a status, and ``{"error": {message, type, param, code}}``."""

import asyncio
import math
from contextlib import suppress

import grpc
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latentforge.core.api_errors import error_body
from latentforge.gateway.rpc.errors import ApiError

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# As nginx says it: nobody reads the answer, but the log does.
CLIENT_GONE = 499
_LINGER_PAUSE_SECONDS = 0.02


class HttpError(Exception):
    """What a request is answered with.

    Args:
        code: names the cause in lower_snake_case, for programs.
        param: names the field of the request that is to blame.
        linger_until: time of the event loop until which what still comes of the body is read and dropped.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        linger_until: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.linger_until = linger_until

    def response(self) -> Response:
        content = msgspec.json.encode(error_body(self.status, self.code, self.message, self.param))
        if self.linger_until is None:
            return Response(content, self.status, self.headers, "application/json")
        headers = self.headers | {"connection": "close"}
        return _LingeringResponse(content, self.status, headers, "application/json", self.linger_until)


class _LingeringResponse(Response):
    """An answer to a request whose body has not come whole.

    A connection that is closed with bytes unread is reset, and its client may never see the answer. So what comes is
    read for a while, slowly.
    """

    def __init__(self, content: bytes, status: int, headers: dict[str, str], media_type: str, until: float) -> None:
        super().__init__(content, status, headers, media_type)
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._until):
                comes = True
                while comes:
                    comes = (await receive()).get("more_body", False)
                    await asyncio.sleep(_LINGER_PAUSE_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def http_error_of(error: ApiError, names: dict[str, str] | None = None) -> HttpError:
    """The same refusal over HTTP.

    Args:
        names: of fields, where HTTP has others than gRPC.
    """
    param = error.violations[0].field if error.violations else None
    message = error.message
    if param is not None and names and (renamed := names.get(param)) is not None:
        message = message.replace(f"{param}: ", f"{renamed}: ", 1)
        param = renamed
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return HttpError(
        _STATUS.get(error.code, 500), (error.reason or error.code.name).lower(), message, param=param, headers=headers
    )


def invalid(param: str, what: str) -> HttpError:
    """400 for a wrong field; ``what`` says its value and what is allowed."""
    return HttpError(400, "invalid_fields", f"{param}: {what}", param=param)


async def answer_error(_: Request, error: Exception) -> Response:
    """A handler for FastAPI."""
    assert isinstance(error, HttpError)
    return error.response()
