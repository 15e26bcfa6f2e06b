"""Which text nobody trains on: one share, decided by names or by content, the same on every machine."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from latentforge.text.documents import Document, read_documents, write_lines
from latentforge.text.errors import TextError
from latentforge.text.packed import PackedData

Split = Literal["train", "held-out"]

HELD_OUT_PERCENT = 5


def split_of(name: str) -> Split:
    """Assigns a file to a split by its name alone, so that every machine and every Python version agrees."""
    digest = hashlib.sha256(name.encode()).digest()
    return "held-out" if int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT else "train"


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
        TextError: the file is too small to divide.
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
        raise TextError(
            f"{source} is too small to hold documents out: {len(by_hash)} different documents, "
            f"{sum(size for _, size in by_hash)} characters; a held-out part needs {min_characters}. "
            "Give more documents, --held-out FILE, or a smaller --sequence-length"
        )
    lines = [
        (h in chosen, json.dumps({"text": d.text} if d.text is not None else {"messages": d.messages}))
        for h, _, d in documents
    ]
    write_lines(train, [line for held, line in lines if not held])
    write_lines(held_out, [line for held, line in lines if held])
    num_held_out = sum(held for held, _ in lines)
    return len(lines) - num_held_out, num_held_out


def split_tail(data: PackedData, percent: int = HELD_OUT_PERCENT) -> tuple[PackedData, PackedData]:
    """Cuts the last ``percent`` of the sequences off as held-out, at least one.

    Raises:
        TextError: there is only one sequence.
    """
    num_held_out = max(1, len(data) * percent // 100)
    if num_held_out >= len(data):
        raise TextError(f"{data.folder} holds {len(data)} sequence, none is left to hold out; give --held-out DIR")
    cut = len(data) - num_held_out
    return data.part(0, cut), data.part(cut, len(data))


def _content_hash(document: Document) -> int:
    return int.from_bytes(hashlib.sha256(document.content.encode()).digest()[:8], "big")
