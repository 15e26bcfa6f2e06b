"""Documents: what one line of data says, checked and named by its place."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.core.files import replacing
from latentforge.text.chat_template import ROLES, strings_of
from latentforge.text.errors import TextError
from latentforge.text.surrogates import surrogate_in

EXPECTED = 'one JSON object per line, {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Document:
    """One line of data: either ``text`` or ``messages`` is set.

    Attributes:
        place: file:line.
        messages: each has a string ``content``; what else they have is the chat template's affair.
    """

    place: str
    text: str | None
    messages: list[dict[str, Any]] | None

    @property
    def content(self) -> str:
        """What a document is told apart by."""
        return self.text if self.text is not None else json.dumps(self.messages, sort_keys=True)

    @property
    def words(self) -> str:
        """Its text, or what its messages say, without names and roles."""
        return self.text if self.text is not None else "\n".join(m["content"] for m in self.messages or ())


def parse_document(raw: bytes, place: str, text_column: str | None = None) -> Document:
    """Reads one line.

    Args:
        raw: JSON.
        place: file:line, for errors.
        text_column: the name under which the text stands; None takes "text" or "messages".

    Raises:
        TextError: it is not as expected; names the place, what is wrong and what is expected.
    """

    def wrong(what: str) -> TextError:
        expected = EXPECTED if text_column is None else f'one JSON object per line with a string "{text_column}"'
        return TextError(f"{place}: {what}; expected {expected}")

    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        raise wrong("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise wrong(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise wrong("nested too deeply to be read") from None
    except ValueError:
        # Python reads no longer ones, since that takes time that grows with the square of their length.
        raise wrong(f"a number of more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(value, dict):
        raise wrong(f"a JSON {type(value).__name__}, not an object")
    name = text_column or "text"
    text, messages = value.get(name), value.get("messages") if text_column is None else None
    if text_column is not None and text is None:
        raise wrong(f'no "{text_column}"')
    if (text is None) == (messages is None):
        raise wrong('both "text" and "messages"' if text is not None else 'neither "text" nor "messages"')
    if text is not None:
        if not isinstance(text, str):
            raise wrong(f'"{name}" is a JSON {type(text).__name__}, not a string')
        if half := surrogate_in(text):
            raise wrong(f'"{name}" is no text: {half}')
        return Document(place, text, None)
    if not isinstance(messages, list) or not messages:
        raise wrong('"messages" is not a list with at least one message')
    try:
        return Document(place, None, [_message(message) for message in messages])
    except TextError as error:
        raise wrong(str(error)) from None


def _message(value: Any) -> dict[str, Any]:
    """The message with a string as its content."""
    if not isinstance(value, dict):
        raise TextError(f"a message is a JSON {type(value).__name__}, not an object")
    message: dict[str, Any] = value
    if message.get("role") not in ROLES:
        raise TextError(f'a message with "role" {message.get("role")!r}, not one of {", ".join(ROLES)}')
    content = message.get("content")
    if isinstance(content, list):
        message = {**message, "content": "".join(map(_part, content))}
    elif content is None and message.get("tool_calls"):
        # An assistant that only calls tools says nothing.
        message = {**message, "content": ""}
    elif not isinstance(content, str):
        raise TextError('a message without a string "content" or a list of parts {"type": "text", "text": "..."}')
    if half := next(filter(None, map(surrogate_in, strings_of(message))), None):
        raise TextError(f"a message is no text: {half}")
    return message


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise TextError(f'a content part of type {kind!r}: only {{"type": "text", "text": "..."}} can be learnt from')
    if not isinstance(part.get("text"), str):
        raise TextError('a content part of type "text" without a string "text"')
    text: str = part["text"]
    return text


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file of lines, which appears whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
