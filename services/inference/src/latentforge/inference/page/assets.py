"""The page's files and the headers that they are sent with."""

from pathlib import Path

from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
# Nothing is loaded from, sent to or framed by any other origin, and no script or style stands in the document itself.
HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Asked for anew, and sent only where it has changed: a new version is seen at once.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """The folder of the page's files."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def document() -> FileResponse:
    """The page itself."""
    return FileResponse(STATIC / "index.html", headers=HEADERS)
