"""Who may call: the bearer key, and which pages of other sites."""

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from latentforge.inference.rest.errors import error_response

# What tells nothing of anybody's texts, and what a person needs in order to enter the key.
_OPEN = {"/", "/health", "/ready", "/docs", "/openapi.json"}
_OPEN_FOLDERS = ("/page/", "/docs/")
# What only this server's own page may send: who may write with a model may still not choose it.
_OWN_PAGE_ALONE = ("/checkpoints/", "/teacher")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_OTHER_SITES = {b"cross-site", b"same-site"}


class AccessGate:
    """Answers 401 to whoever lacks a key where there are some, and 403 to what a foreign page in a browser sends.

    Browsers let any page send a POST to any server and keep only the answer from it: enough to pin a checkpoint. They
    say where it comes from, and what is no browser says nothing.

    Args:
        keys: one of them must come as ``authorization: Bearer KEY``; none lets everybody in.
        origins: of pages that may send, as in INFERENCE_CORS_ORIGINS; what the server's own page does they may not.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], origins: Sequence[str]) -> None:
        self.app = app
        self._keys = [key.encode() for key in keys]
        self._origins = {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if self._is_foreign(scope["method"], scope["path"], headers):
                message = "a page of another site sent this; open this server's own page"
                if not scope["path"].startswith(_OWN_PAGE_ALONE):
                    message += ", or add the other one's origin to INFERENCE_CORS_ORIGINS"
                await error_response(403, "origin_not_allowed", message)(scope, receive, send)
                return
            if self._keys and not _is_open(scope["path"]) and (problem := self._refusal(headers)):
                message = f"{problem}; send the header 'authorization: Bearer <a key of INFERENCE_API_KEY>'"
                asks = {"www-authenticate": "Bearer"}
                await error_response(401, "invalid_api_key", message, headers=asks)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_foreign(self, method: str, path: str, headers: dict[bytes, bytes]) -> bool:
        if method in _SAFE_METHODS or not _is_of_another_site(headers):
            return False
        is_listed = b"*" in self._origins or headers.get(b"origin") in self._origins
        return not is_listed or path.startswith(_OWN_PAGE_ALONE)

    def _refusal(self, headers: dict[bytes, bytes]) -> str | None:
        given = headers.get(b"authorization")
        if given is None:
            return "no key was sent"
        scheme, _, key = given.partition(b" ")
        # In constant time, and all of them, so that nobody can find a key letter by letter.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return None if scheme.lower() == b"bearer" and any(matches) else "the key is wrong"


def _is_of_another_site(headers: dict[bytes, bytes]) -> bool:
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site in _OTHER_SITES
    # An older browser. The scheme is not compared: a proxy that speaks TLS changes it, and keeps the host.
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get(b"host", b"").lower()


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)
