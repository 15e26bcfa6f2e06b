"""Request bodies as values, bounded in their number so that none holds up other requests."""

import json
from collections.abc import Callable, Coroutine
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from latentforge.inference.rest.errors import RestError

# As many biases as a request may have, and its other fields.
_MOST_STRINGS = 512
_MOST_BETWEEN = 16 * 1024


class BoundedRoute(APIRoute):
    """A route whose bodies are JSON, whatever their content type says, and cost no more than their texts are long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            # Curl calls what it sends a form unless it is told otherwise; FastAPI parses what is called JSON alone.
            others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
            scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
            return await handle(_BoundedRequest(scope, request.receive))

        return handle_bounded


class _BoundedRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


def parse_json(body: bytes) -> Any:
    """JSON of a few fields, whose texts may be long, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

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
            if num_strings > _MOST_STRINGS or num_between > _MOST_BETWEEN:
                break
            _, end = scanstring(text, quote + 1)
        if num_strings > _MOST_STRINGS or num_between + len(text) - end > _MOST_BETWEEN:
            raise RestError(
                422,
                "invalid_value",
                f"the body has more than {_MOST_STRINGS} strings, names of fields counted, or {_MOST_BETWEEN} bytes "
                "beside them, which no request has",
            )
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from None
