"""Errors as callers see them: ``{"error": {"message", "type", "param", "code"}}`` with the right status."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from latentforge.core.api_errors import error_body
from latentforge.core.errors import describe_error, shortened

_MOST_NAMED = 10
# The type of validation errors of two fields that contradict each other; their message names both.
CONFLICT = "conflict"
# Where a route says what its wrong values are answered with.
INVALID_STATUS = "latentforge.invalid_status"


class RestError(HTTPException):
    """A refusal or failure with its HTTP status; ``param`` names the field of the request that is to blame.

    An HTTPException, since FastAPI lets no other error of reading a body through.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    def response(self) -> JSONResponse:
        headers = dict(self.headers or {})
        return error_response(self.status_code, self.code, self.detail, param=self.param, headers=headers)


def conflict(param: str, message: str) -> PydanticCustomError:
    """For validators: fields that contradict each other, of which ``param`` is to blame."""
    return PydanticCustomError(CONFLICT, "{said}", {"said": message, "param": param})


def error_response(
    status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(error_body(status, code, message, param), status, headers)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RestError, _on_rest_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_rest_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RestError)
    return error.response()


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    entries = error.errors()
    if any(entry["type"] == "json_invalid" for entry in entries):
        return error_response(400, "invalid_json", f"the body is not JSON: {entries[0]['ctx']['error']}")
    message = "; ".join(_describe(entry) for entry in entries[:_MOST_NAMED])
    if len(entries) > _MOST_NAMED:
        message += f"; and {len(entries) - _MOST_NAMED} more"
    param = _field(entries[0]["loc"]) or entries[0].get("ctx", {}).get("param")
    return error_response(request.scope.get(INVALID_STATUS, 422), "invalid_value", message, param=param)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(
        error.status_code, str(error.detail).lower().replace(" ", "_"), message, headers=dict(error.headers or {})
    )


def _describe(entry: dict[str, Any]) -> str:
    if entry["type"] == CONFLICT:
        return describe_error(entry, "", quoted=False)
    return describe_error(entry, _field(entry["loc"]) or "the body")


def _field(loc: Sequence[Any]) -> str:
    return shortened(".".join(str(part) for part in loc[1:]))
