"""Documents as JSON lines: reading with line numbers, the standard library as data, a held-out share."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.core.corpus import Split, source_files, stdlib_root
from latentforge.core.packages import PackageFile, Packages
from latentforge.trainer.errors import TrainerError

EXPECTED = 'one JSON object per line, {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
HELD_OUT_PERCENT = 5
_ROLES = ("system", "user", "assistant")


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
        TrainerError: no such file, or a line that is not as expected; names file, line and what is expected.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TrainerError(f"{path} cannot be read ({error.strerror}); give a file with {EXPECTED}") from None
    with file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield _document(path, number, raw)


def _document(path: Path, number: int, raw: bytes) -> Document:
    def wrong(what: str) -> TrainerError:
        return TrainerError(f"{path}, line {number}: {what}; expected {EXPECTED}")

    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        raise wrong("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise wrong(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise wrong(f"a JSON {type(value).__name__}, not an object")
    text, messages = value.get("text"), value.get("messages")
    if (text is None) == (messages is None):
        raise wrong('both "text" and "messages"' if text is not None else 'neither "text" nor "messages"')
    if text is not None:
        if not isinstance(text, str):
            raise wrong(f'"text" is a JSON {type(text).__name__}, not a string')
        return Document(number, len(raw), text, None)
    if not isinstance(messages, list) or not messages:
        raise wrong('"messages" is not a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise wrong('a message without a string "content"')
        if message.get("role") not in _ROLES:
            raise wrong(f'a message with "role" {message.get("role")!r}, not one of {", ".join(_ROLES)}')
    return Document(number, len(raw), None, messages)


def write_stdlib(out: Path, split: Split) -> int:
    """Writes one split of the running Python's standard library as JSONL; returns the number of documents."""
    lines = [json.dumps({"text": f.text, "name": f.name}) for f in source_files(stdlib_root(), split)]
    if not lines:
        raise TrainerError(f"{stdlib_root()} holds no Python sources; give a JSONL file with {EXPECTED}")
    _write_lines(out, lines)
    return len(lines)


@dataclass(frozen=True)
class Written:
    """What came of a file: ``num_bytes`` of text in UTF-8; ``cut`` where more was there than was allowed."""

    num_documents: int
    num_bytes: int
    cut: bool


def write_packages(
    out: Path,
    packages: Packages,
    split: Split,
    candidates: Sequence[PackageFile],
    *,
    max_bytes: int | None = None,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> Written:
    """Writes installed packages' files as JSONL, in the candidates' order.

    Args:
        out: the file, which appears whole or not at all.
        packages: where the candidates are from.
        split: theirs.
        candidates: what to write, less what :meth:`Packages.files` leaves out.
        max_bytes: ends before the text, in UTF-8, is larger; None writes all.
        on_bytes: told the size of each candidate that was read.

    Raises:
        TrainerError: nothing remains to be written.
    """
    num_documents = num_bytes = 0
    cut = False

    def lines() -> Iterator[str]:
        nonlocal num_documents, num_bytes, cut
        for file in packages.files(split, candidates, on_bytes=on_bytes):
            size = len(file.text.encode())
            if cut := max_bytes is not None and num_bytes + size > max_bytes:
                break
            num_documents, num_bytes = num_documents + 1, num_bytes + size
            yield json.dumps({"text": file.text, "name": file.name})
        if not num_documents:
            limit = "" if max_bytes is None else f" within {max_bytes / 1e6:g} MB"
            raise TrainerError(f"no Python file of the {split} split{limit} in {', '.join(map(str, packages.roots))}")

    _write_lines(out, lines())
    return Written(num_documents, num_bytes, cut)


def split_held_out(source: Path, train: Path, held_out: Path, *, min_characters: int) -> tuple[int, int]:
    """Divides a JSONL file by a hash of each document's content: 5 % is held out, or what ``min_characters`` needs.

    Copies of one document fall on the same side, and a document keeps its side when others are added.

    Args:
        source: the file to divide.
        train: where the lines for training go.
        held_out: where the others go.
        min_characters: least size of the held-out part, so that it fills a sequence.

    Returns:
        Numbers of documents, (train, held-out).

    Raises:
        TrainerError: the file is too small to divide.
    """
    documents = [(_content_hash(d), len(d.content), d) for d in read_documents(source)]
    by_hash = sorted({(h, size) for h, size, _ in documents})
    chosen: set[int] = set()
    characters = 0
    for h, size in by_hash:
        if h >= HELD_OUT_PERCENT * 2**64 // 100 and characters >= min_characters:
            break
        chosen.add(h)
        characters += size
    if 2 * len(chosen) > len(by_hash) or characters < min_characters:
        raise TrainerError(
            f"{source} is too small to hold documents out: {len(by_hash)} different documents, "
            f"{sum(size for _, size in by_hash)} characters; a held-out part needs {min_characters}. "
            "Give more documents, --held-out FILE, or a smaller --sequence-length"
        )
    lines = [
        (h in chosen, json.dumps({"text": d.text} if d.text is not None else {"messages": d.messages}))
        for h, _, d in documents
    ]
    _write_lines(train, [line for held, line in lines if not held])
    _write_lines(held_out, [line for held, line in lines if held])
    num_held_out = sum(held for held, _ in lines)
    return len(lines) - num_held_out, num_held_out


def _content_hash(document: Document) -> int:
    return int.from_bytes(hashlib.sha256(document.content.encode()).digest()[:8], "big")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
