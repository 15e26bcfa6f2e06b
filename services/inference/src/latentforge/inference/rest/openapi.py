"""The API's description: what is really answered, errors included."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from latentforge.inference.rest.schemas.common import ErrorAnswer

Responses = dict[int | str, dict[str, Any]]

_FASTAPIS_OWN = "HTTPValidationError", "ValidationError"


_MEANINGS = {
    400: "The body is no JSON, a value is wrong, or does not fit the model",
    401: "An API key is needed, and none or a wrong one was sent",
    403: "A page of another site sent it",
    404: "There is no such checkpoint, or no such service is set",
    409: "The checkpoint has failed its checks, or what was asked for cannot be done now",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "It is not said to be JSON",
    422: "A value is wrong",
    429: "The queue is full; retry-after says when to try again",
    500: "The server failed",
    502: "Another service answered wrongly",
    503: "Nothing is loaded yet, or the server is shutting down, or another service is absent",
    504: "It took longer than a request may",
}


def failures(*statuses: int) -> Responses:
    """Answers with an error."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


LOOKS = failures(401, 404, 409, 500, 503)
GENERATE_ANSWERS = failures(400, 401, 403, 408, 413, 422, 429, 500, 503, 504)
ANSWERS = failures(400, 401, 403, 404, 408, 409, 413, 429, 500, 503, 504)


def streamed(item: type[BaseModel]) -> Responses:
    """What an endpoint answers where ``stream`` is true, besides its JSON: events that hold an ``item`` each."""
    one = {
        "type": "object",
        "description": "An event; comments come while nothing happens.",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "string",
                "description": f"A {item.__name__}, an error as elsewhere, or [DONE] at the end.",
                "anyOf": [
                    {
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": f"#/components/schemas/{item.__name__}"},
                        "not": {"const": "[DONE]"},
                    },
                    {"const": "[DONE]"},
                ],
            }
        },
    }
    return {
        200: {
            "description": "Successful Response; where stream is true as server-sent events",
            "content": {"text/event-stream": {"schema": one}},
        }
    }


def install_openapi(app: FastAPI, items: Sequence[type[BaseModel]]) -> None:
    """Takes out the answer that FastAPI lists for wrong values, since ours has another shape, and often status.

    Args:
        app: the application.
        items: of streams, which FastAPI does not see.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    answers = operation["responses"]
                    if _is_fastapis_own(answers.get("422")):
                        answers.pop("422")
                        if "400" not in answers and "requestBody" in operation:
                            answers["422"] = _wrong_value()
            for name in _FASTAPIS_OWN:
                schema["components"]["schemas"].pop(name, None)
            for item in items:
                described = item.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
                schema["components"]["schemas"] |= described.pop("$defs", {}) | {item.__name__: described}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _wrong_value() -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}
    return {"description": _MEANINGS[422], "content": {"application/json": content}}


def _is_fastapis_own(response: dict[str, Any] | None) -> bool:
    return response is not None and _FASTAPIS_OWN[0] in str(response)
