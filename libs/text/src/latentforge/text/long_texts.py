"""Long texts in pieces that encode to the same ids: a text of megabytes at once takes a hundred times its size.

A border is a place that no token can span and at which the tokenizer's own splitting does the same whether the text
goes on or not. Two kinds are looked for, between P and Q:

- a line that ends in no blank, its newline, and then a letter:  ``…x\\n`` | ``y…``
- a letter, and then one blank and a letter:                      ``…x`` | `` y…``

A kind is used where no token of the vocabulary holds what is on both sides of it, so that neither merges of BPE nor
pieces of a unigram model can cross it, and where a text that was cut at every such border encodes as the whole does.
A piece is encoded behind an anchor that ends as P does, whose ids are taken off again: what a tokenizer puts at the
beginning of a text, a blank or a mark of the first word, comes before the anchor then, and nothing before the piece.

A text that has no border within :data:`REACH` characters, such as base64 in one line, is cut there all the same: the
ids around that place may be others than those of the whole text. Such cuts are counted.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# Characters. Encoding takes about 130 bytes for each while it runs.
PIECE = 2**16
REACH = 2**18

# Not a private-use character, which stands for a control token: those may swallow the blanks beside them.
_NO_BLANK = r"[^\s\ue000-\uf8ff\U000f0000-\U0010ffff]"
_LETTER = r"[^\W\d_]"
_PROBE = "".join(
    f"{a}{b}"
    for a in ("Ab", "de ", "x;", "9", "(y)", "don't", "  if", "é", "东京。", "_z", "HTTP2", "\t", "a\r\n", "it'll\n\n")
    for b in ("\nThe fox", "\nдом a", " jumps over", " é", "\n东京", " X\nY z", "\nreturn x1 a", "\n a\nb")
)


@dataclass(frozen=True)
class Border:
    """A kind of border.

    Attributes:
        place: matches between P and Q.
        spanning: matches the bytes of tokens that hold both; any byte above 127 may belong to a letter.
        anchor: a text that ends as P does.
    """

    place: re.Pattern[str]
    spanning: re.Pattern[bytes]
    anchor: str


BORDERS = (
    Border(re.compile(rf"(?<={_NO_BLANK}\n)(?={_LETTER})"), re.compile(rb"\n[A-Za-z\x80-\xff]"), "a\n"),
    Border(re.compile(rf"(?<={_LETTER})(?= {_LETTER})"), re.compile(rb"[A-Za-z\x80-\xff] "), "a"),
)


@dataclass(frozen=True)
class CutText:
    """A part of a text: ``text`` begins with an anchor of ``num_anchor_ids`` ids; ``forced`` where it ends at no
    border, ``last`` where it ends the text."""

    text: str
    num_anchor_ids: int = 0
    forced: bool = False
    last: bool = True


def usable_borders(encode: Callable[[str], Sequence[int]], tokens: Sequence[bytes]) -> list[tuple[Border, int]]:
    """The kinds of border at which a tokenizer's texts may be cut, each with the number of its anchor's ids.

    Args:
        encode: ids of a text, nothing added.
        tokens: what each id stands for.
    """
    whole = list(encode(_PROBE))
    usable = []
    for border in BORDERS:
        if any(border.spanning.search(token) for token in tokens):
            continue
        num_anchor_ids = len(encode(border.anchor))
        cuts = [match.start() for match in border.place.finditer(_PROBE)]
        ids = list(encode(_PROBE[: cuts[0]]))
        for start, stop in zip(cuts, [*cuts[1:], len(_PROBE)], strict=True):
            ids += list(encode(border.anchor + _PROBE[start:stop]))[num_anchor_ids:]
        if ids == whole:
            usable.append((border, num_anchor_ids))
    return usable


def pieces_of(
    text: str, borders: Sequence[tuple[Border, int]], *, piece: int = PIECE, reach: int = REACH
) -> Iterator[CutText]:
    """Cuts a text; one of up to two pieces is left whole.

    Args:
        text: of any length.
        borders: see :func:`usable_borders`.
        piece: characters after which a border is looked for.
        reach: characters after which the text is cut, border or not.
    """
    start, anchor, num_anchor_ids = 0, "", 0
    while len(text) - start > 2 * piece:
        found = _next(text, start + piece, start + reach, borders)
        if found is None:
            if len(text) - start <= reach:
                break
            stop = start + reach
            yield CutText(anchor + text[start:stop], num_anchor_ids, forced=True, last=False)
            start, anchor, num_anchor_ids = stop, "", 0
        else:
            stop, border, count = found
            yield CutText(anchor + text[start:stop], num_anchor_ids, last=False)
            start, anchor, num_anchor_ids = stop, border.anchor, count
    yield CutText(anchor + text[start:], num_anchor_ids)


def _next(text: str, after: int, before: int, borders: Sequence[tuple[Border, int]]) -> tuple[int, Border, int] | None:
    for border, num_anchor_ids in borders:
        for match in border.place.finditer(text, after, min(before, len(text) - 1)):
            at = match.start()
            # Normalisers make blanks or marks of some letters.
            if unicodedata.is_normalized("NFKC", text[at - 2 : at + 2]):
                return at, border, num_anchor_ids
    return None
