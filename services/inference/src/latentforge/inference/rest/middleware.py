"""What every answer gets: an id, a line in the log, and an error body when all else failed."""

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentforge.core.request_id import REQUEST_ID, request_id_of
from latentforge.inference.rest.errors import error_response

# Probes ask every few seconds and would bury everything else.
_QUIET = {"/health", "/ready"}

logger = logging.getLogger(__name__)


class RequestContext:
    """Echoes the caller's x-request-id, or makes one; answers 500 in the API's own shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(REQUEST_ID, ""))
        start = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            message = f"the server failed; its log says why under request id {request_id}"
            await error_response(500, "internal_error", message)(scope, receive, send_with_id)
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        milliseconds = 1000 * (time.perf_counter() - start)
        logger.log(level, "%s %s %d in %.0f ms (%s)", scope["method"], scope["path"], status, milliseconds, request_id)
