"""What the page's own requests must look like, so that no other site can make a visitor's browser send them."""

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response

from latentforge.inference.rest.bodies import BoundedRoute
from latentforge.inference.rest.errors import RestError

_OWN_SITE = ("same-origin", "none")


class PageRoute(BoundedRoute):
    """A route whose POSTs have to be JSON by their content type and, from a browser, of this server's own origin.

    A form of another site can be neither: it has another content type, and browsers say where it comes from.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_guarded(request: Request) -> Response:
            if request.method == "POST":
                refuse_other_sites(request)
            return await handle(request)

        return handle_guarded


def refuse_other_sites(request: Request) -> None:
    """Passes what is JSON and comes from no other site.

    Raises:
        RestError: 415 for another content type, 403 for another origin.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        said = f"is {kind!r}" if kind else "is missing"
        raise RestError(
            415, "unsupported_media_type", f"content-type {said}: send application/json", param="content-type"
        )
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    # The scheme is not compared: a proxy that speaks TLS changes it, and keeps the host.
    is_other = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if is_other or request.headers.get("sec-fetch-site", "none") not in _OWN_SITE:
        raise RestError(
            403, "other_origin", f"the request comes from {origin or 'another site'}: open this server's own page"
        )
