"""How every service names a request: as its caller does, if that name is safe in a header, a log and a shell."""

import re
import uuid

REQUEST_ID = "x-request-id"
_GRAMMAR = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_of(given: str) -> str:
    """The caller's id, or a new one where it sent none, or one with others than letters, digits and ``._:/+=-``."""
    return given if _GRAMMAR.fullmatch(given) else uuid.uuid4().hex
