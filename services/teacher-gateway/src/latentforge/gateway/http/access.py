"""Who asks over HTTP: by the gateway's keys, in the headers that clients can send."""

import base64
import binascii

from latentforge.gateway.http.errors import HttpError
from latentforge.gateway.keys import KeyRefusedError, Keys
from latentforge.gateway.scoring.callers import Caller


def caller_of(keys: Keys, authorization: str | None, connection: str) -> Caller:
    """Who sends a key as ``Bearer KEY``, or as the password of ``Basic``.

    Clients that know of no keys, as TRL's, send Basic where their URL is ``http://any:KEY@host:port``.

    Raises:
        HttpError: 401; a key is needed, and none or another was sent.
    """
    try:
        return keys.caller(_as_bearer(authorization), connection)
    except KeyRefusedError as refused:
        message = str(refused).replace("the metadata", "the header")
        headers = {"www-authenticate": "Bearer"}
        raise HttpError(401, refused.reason.lower(), message, headers=headers) from None


def has_key(keys: Keys, authorization: str | None) -> bool:
    """Whether who sends this may call; anybody may where no key is needed."""
    try:
        keys.caller(_as_bearer(authorization), "")
    except KeyRefusedError:
        return False
    return True


def _as_bearer(authorization: str | None) -> str | None:
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return authorization
    return f"Bearer {password}"
