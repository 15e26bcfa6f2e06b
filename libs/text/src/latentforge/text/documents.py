"""Documents as JSON lines: read with line numbers, written whole."""

import json
import sys
from collections.abc import Iterable, Iterator
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
    """One line of a file, of ``num_bytes``: either ``text`` or ``messages`` is set."""

    line: int
    num_bytes: int
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


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of a JSONL file; blank lines are passed over.

    Raises:
        TextError: no such file, or a line that is not as expected; names file, line and what is expected.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}); give a file with {EXPECTED}") from None
    with file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield _document(path, number, raw)


def _document(path: Path, number: int, raw: bytes) -> Document:
    def wrong(what: str) -> TextError:
        return TextError(f"{path}, line {number}: {what}; expected {EXPECTED}")

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
    text, messages = value.get("text"), value.get("messages")
    if (text is None) == (messages is None):
        raise wrong('both "text" and "messages"' if text is not None else 'neither "text" nor "messages"')
    if text is not None:
        if not isinstance(text, str):
            raise wrong(f'"text" is a JSON {type(text).__name__}, not a string')
        if half := surrogate_in(text):
            raise wrong(f'"text" is no text: {half}')
        return Document(number, len(raw), text, None)
    if not isinstance(messages, list) or not messages:
        raise wrong('"messages" is not a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise wrong('a message without a string "content"')
        if message.get("role") not in ROLES:
            raise wrong(f'a message with "role" {message.get("role")!r}, not one of {", ".join(ROLES)}')
        if half := next(filter(None, map(surrogate_in, strings_of(message))), None):
            raise wrong(f"a message is no text: {half}")
    return Document(number, len(raw), None, messages)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file of lines, which appears whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
