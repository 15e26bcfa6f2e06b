"""Token strings and bytes back to token ids, where that is certain."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd".encode()
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenMapping:
    """Which id a token that an API wrote as a string, and perhaps as bytes, must be.

    An API writes a token as its own bytes, or as what decoding it alone gives, which loses what is no UTF-8 by itself
    and, in some vocabularies, a leading space. Both renderings of every id are known here, and one that two ids share,
    that is empty or that holds U+FFFD stands for none. So an id is found only if no other id could have been meant.
    Special tokens have one rendering, their literal.

    Args:
        folder: holds the teacher's tokenizer.json.

    Attributes:
        special_ids: ids of special tokens.
        num_ids: one more than the highest id.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        to_bytes = _bytes_of_pieces(content)
        pieces = {i: piece for piece, i in tokenizer.get_vocab(with_added_tokens=False).items()}
        self._bytes: dict[int, bytes] = {i: data for i, p in pieces.items() if (data := to_bytes(p)) is not None}
        self._bytes |= {i: token.content.encode() for i, token in added.items()}

        ids = sorted(pieces.keys() | added.keys())
        self.num_ids = ids[-1] + 1
        decoded = tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
        owners: dict[bytes, int | None] = {}
        for token_id, text in zip(ids, decoded, strict=True):
            renderings = {self._bytes.get(token_id, b"")}
            if token_id not in self.special_ids:
                renderings.add(text.encode())
            for rendering in renderings:
                owners[rendering] = token_id if owners.get(rendering, token_id) == token_id else None
            # What no bytes are known of has the text that it decodes to, if that is whole.
            self._bytes.setdefault(token_id, text.encode())
        self._ids = {data: i for data, i in owners.items() if i is not None and data and _REPLACEMENT not in data}

    def id_of(self, token: str, data: bytes | None = None) -> int | None:
        """The id of a token written as ``token`` and, where the API gives them, as the bytes ``data``; None if unsure.

        Bytes decide, and a string that contradicts them means neither is to be believed. A server that has only a
        lossy string may give that string's bytes, so they are no surer than it where they hold U+FFFD.
        """
        written = token.encode("utf-8", "surrogatepass")
        if not data:
            return self._ids.get(written)
        token_id = self._ids.get(data)
        if token_id in self.special_ids and written != data:
            return None
        return token_id if _may_render(written, data) else None

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of an id that :meth:`id_of` gave."""
        return self._bytes[token_id]

    def text_of(self, token_ids: Sequence[int], *, special: bool) -> bytes:
        """The bytes of several ids; special tokens count only if ``special``."""
        return b"".join(self._bytes[i] for i in token_ids if special or i not in self.special_ids)


def _may_render(written: bytes, data: bytes) -> bool:
    """Whether a token of bytes ``data`` may be written so. Bytes that are no UTF-8 are written in many ways."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return written == data


def _bytes_of_pieces(tokenizer: dict[str, Any]) -> Callable[[str], bytes | None]:
    """How a vocabulary's pieces are read: piece to bytes, or None where the piece does not say."""
    kinds = {step.get("type") for step in _steps(tokenizer.get("decoder"))}
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()

        def byte_level(piece: str) -> bytes | None:
            return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None

        return byte_level
    if "ByteFallback" in kinds:

        def sentence_piece(piece: str) -> bytes | None:
            if match := _BYTE_PIECE.fullmatch(piece):
                return bytes([int(match[1], 16)])
            return piece.replace("▁", " ").encode()

        return sentence_piece
    return lambda piece: None


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    yield decoder
    for inner in decoder.get("decoders", []):
        yield from _steps(inner)


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
