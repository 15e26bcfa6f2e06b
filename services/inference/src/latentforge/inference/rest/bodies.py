"""Request bodies as values, bounded in their number so that none holds up other requests."""

import json
from collections.abc import Callable, Coroutine
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope

from latentforge.inference.rest.errors import INVALID_STATUS, RestError

# As many biases as a request may have, and its other fields.
_MOST_STRINGS = 512
_MOST_BETWEEN = 16 * 1024


class BoundedRoute(APIRoute):
    """A route whose bodies are JSON, whatever their content type says, and cost no more than their texts are long.

    Attributes:
        most_strings, most_between: bounds of :func:`parse_json`.
        invalid_status: what a wrong value is answered with.
    """

    most_strings = _MOST_STRINGS
    most_between = _MOST_BETWEEN
    invalid_status = 422

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            # Curl calls what it sends a form unless it is told otherwise; FastAPI parses what is called JSON alone.
            others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
            scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
            # For the handler of errors.
            request.scope[INVALID_STATUS] = self.invalid_status
            bounds = self.most_strings, self.most_between, self.invalid_status
            return await handle(_BoundedRequest(scope, request.receive, bounds))

        return handle_bounded


def bounded_route(*, most_strings: int, most_between: int) -> type[BoundedRoute]:
    """Routes of OpenAI's API: they answer 400 to a wrong value, and have bounds of their own."""

    class OpenAIRoute(BoundedRoute):
        invalid_status = 400

    OpenAIRoute.most_strings, OpenAIRoute.most_between = most_strings, most_between
    return OpenAIRoute


class _BoundedRequest(Request):
    def __init__(self, scope: Scope, receive: Receive, bounds: tuple[int, int, int]) -> None:
        super().__init__(scope, receive)
        self._bounds = bounds

    async def json(self) -> Any:
        return parse_json(await self.body(), *self._bounds)


def parse_json(
    body: bytes, most_strings: int = _MOST_STRINGS, most_between: int = _MOST_BETWEEN, invalid_status: int = 422
) -> Any:
    """JSON of a few fields, whose texts may be long, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Args:
        body: the JSON.
        most_strings: it may have so many, names of fields counted.
        most_between: it may have so many bytes beside them.
        invalid_status: of the error where it has more.

    Parsing, and naming what is wrong, take microseconds a value, in which no other request is answered: seconds for
    the 300,000 fields that a body has room for. So the strings are counted first, the names of fields among them, and
    the bytes between them, where all else stands.

    Raises:
        JSONDecodeError: it is no JSON.
        RestError: it has more strings, or more between them, than any request.
    """
    try:
        text = body.decode(json.detect_encoding(body)).rstrip()
        num_strings = num_between = end = 0
        while (quote := text.find('"', end)) >= 0:
            num_strings, num_between = num_strings + 1, num_between + quote - end
            if num_strings > most_strings or num_between > most_between:
                break
            _, end = scanstring(text, quote + 1)
        if num_strings > most_strings or num_between + len(text) - end > most_between:
            raise RestError(
                invalid_status,
                "invalid_value",
                f"the body has more than {most_strings} strings, names of fields counted, or {most_between} bytes "
                "beside them, which no request has",
            )
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
