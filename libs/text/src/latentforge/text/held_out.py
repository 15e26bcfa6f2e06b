"""Which text nobody trains on: one share, decided by names or by content, the same on every machine."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from latentforge.text.documents import Document
from latentforge.text.errors import TextError
from latentforge.text.packed import PackedData
from latentforge.text.text_source import TextSource

Split = Literal["train", "held-out"]

HELD_OUT_PERCENT = 5
# A document whose hash is below this is held out; of few documents those of the next hashes are, too.
HELD_OUT_BELOW = HELD_OUT_PERCENT * 2**64 // 100
# Of so many different documents 5 % are surely less than half.
_ENOUGH_DOCUMENTS = 200
# Documents with the smallest hashes that are looked at, where 5 % are too few characters: enough for any sequence.
_MOST_REMEMBERED = 2**17


def split_of(name: str) -> Split:
    """Assigns a file to a split by its name alone, so that every machine and every Python version agrees."""
    digest = hashlib.sha256(name.encode()).digest()
    return "held-out" if int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT else "train"


def content_hash(document: Document) -> int:
    """A document's place in the order by which documents are held out, 0 … 2⁶⁴ − 1."""
    return int.from_bytes(hashlib.sha256(document.content.encode()).digest()[:8], "big")


def held_out_below(documents: Iterable[Document], min_characters: int) -> int:
    """The hash below which documents are held out: 5 % of all hashes, or what ``min_characters`` needs.

    Copies of one document fall on the same side, and a document keeps its side when others are added. Reads on until
    it is known that 5 % give enough, which is soon, and remembers hashes and sizes only.

    Args:
        documents: in any order.
        min_characters: least size of the held-out part, so that it fills a sequence.

    Raises:
        TextError: there are too few documents to divide.
    """
    sizes: dict[int, int] = {}
    below = characters = total = 0
    for document in documents:
        place, size = content_hash(document), len(document.content)
        if place in sizes:
            continue
        sizes[place] = size
        total += size
        if place < HELD_OUT_BELOW:
            below, characters = below + 1, characters + size
        if characters >= min_characters and len(sizes) >= _ENOUGH_DOCUMENTS and 2 * below <= len(sizes):
            return HELD_OUT_BELOW
        if len(sizes) >= 2 * _MOST_REMEMBERED:
            # Larger hashes are needed only if these are too few characters, and then so many texts were all empty.
            sizes = dict(sorted(sizes.items())[:_MOST_REMEMBERED])
    chosen, characters, limit = 0, 0, HELD_OUT_BELOW
    for place, size in sorted(sizes.items()):
        if place >= HELD_OUT_BELOW and characters >= min_characters:
            break
        chosen, characters, limit = chosen + 1, characters + size, max(limit, place + 1)
    if 2 * chosen > len(sizes) or characters < min_characters:
        raise TextError(
            f"the data is too small to hold documents out: {len(sizes)} different documents, {total} characters; a "
            f"held-out part needs {min_characters}. Give more documents, --held-out FILE, or a smaller "
            "--sequence-length"
        )
    return limit


@dataclass(frozen=True)
class SplitSource:
    """One side of a source that is divided by :func:`held_out_below`; reading passes over the other.

    Attributes:
        source: all documents.
        split: the side.
        below: the hash that divides them; None takes all as this side's.
        skip_bad: passes over lines that are not as expected.
    """

    source: TextSource
    split: Split
    below: int | None = None
    skip_bad: bool = False

    def __str__(self) -> str:
        return self.source.name

    def documents(self) -> Iterator[Document]:
        """Raises as :meth:`TextSource.documents`."""
        for document in self.source.documents((lambda error: None) if self.skip_bad else None):
            if self.below is None or (content_hash(document) < self.below) == (self.split == "held-out"):
                yield document


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
