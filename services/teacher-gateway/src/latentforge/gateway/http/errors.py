"""Refusals and failures as OpenAI's clients read them: a status, and ``{"error": {message, type, param, code}}``."""

import math

import grpc
import msgspec
from starlette.responses import Response

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


class HttpError(Exception):
    """What a request is answered with.

    Args:
        code: names the cause in lower_snake_case, for programs.
        param: names the field of the request that is to blame.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}

    def response(self) -> Response:
        content = msgspec.json.encode(error_body(self.status, self.code, self.message, self.param))
        return Response(content, self.status, self.headers, "application/json")


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
