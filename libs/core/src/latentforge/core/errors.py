"""What pydantic found wrong, in words that name field, value and what is allowed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_LONGEST = 80
# Pydantic writes it before what a validator of ours says.
_OF_VALIDATORS = "Value error, "


def describe_errors(
    error: ValidationError,
    *,
    prefix: str = "",
    variables: bool = False,
    secrets: Sequence[str] = (),
    values: bool = True,
) -> list[str]:
    """One sentence for each wrong field.

    Args:
        prefix: stands before every field's name, as ``student.model.``.
        variables: name fields as the environment variables that set them.
        secrets: top-level fields whose values are never shown.
        values: without, nothing of the input is quoted.
    """
    sentences = []
    for entry in error.errors(include_url=False, include_context=False):
        path = [str(part) for part in entry["loc"]]
        name = (prefix + ".".join(path)).rstrip(".")
        # An entry without a path is about the whole input, which would be quoted whole.
        quoted = values and bool(path) and path[0] not in secrets
        sentences.append(describe_error(entry, name.upper() if variables else name, quoted=quoted))
    return sentences


def describe_error(entry: Mapping[str, Any], name: str, *, quoted: bool = True) -> str:
    """An entry of pydantic's ``errors()`` as a sentence about the field ``name``; quoted, it says the value.

    Without a name it is about the whole.
    """
    # The name of an unknown field is the sender's, and as long as he likes.
    name = shortened(name)
    if entry["type"] == "missing":
        return f"{name} is missing"
    if entry["type"] == "extra_forbidden":
        return f"{name} is not a known field"
    reason = entry["msg"].removeprefix(_OF_VALIDATORS)
    if quoted:
        return f"{name} is {shown(entry['input'])}: {reason}"
    return f"{name}: {reason}" if name else reason


def unreadable(error: OSError) -> str:
    """Why a file cannot be read; in a container the user is one that the owner of the file may not know."""
    return f"{error.strerror} for user {os.getuid()}" if isinstance(error, PermissionError) else f"{error.strerror}"


def shown(value: Any) -> str:
    """A value as messages quote it, at most 80 characters; a long text is cut before it is written out."""
    return shortened(repr(value[:_LONGEST] if isinstance(value, str | bytes) else value))


def shortened(text: str) -> str:
    """At most 80 characters of a text."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
