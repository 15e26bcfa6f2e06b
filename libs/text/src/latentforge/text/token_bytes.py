"""The bytes that each id of a vocabulary stands for."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def is_byte_level(content: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` spells every byte as one character, so that ids give bytes and nothing else."""
    return "ByteLevel" in _decoders(content)


def bytes_of_pieces(content: Mapping[str, Any]) -> Callable[[str], bytes | None]:
    """How a ``tokenizer.json``'s pieces are read: piece to bytes, or None where the piece does not say."""
    kinds = _decoders(content)
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


def _decoders(content: Mapping[str, Any]) -> set[str]:
    return {step.get("type", "") for step in _steps(content.get("decoder"))}


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
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
