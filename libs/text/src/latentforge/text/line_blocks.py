"""JSON lines in blocks, from plain and compressed files, at bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.text.errors import TextError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# A document of so many bytes is some hundred million tokens' worth of mistake, and parsing takes a few times its size.
MAX_LINE_BYTES = 2**28


@dataclass(frozen=True)
class RawBlock:
    """Records that follow one another in a file.

    Attributes:
        first: the number of the first one, from 1; blank lines count.
        data: JSON lines.
        records: how many lines there are before the next block.
        offset: how many bytes, decompressed.
        read: how many bytes of the file as it is on the disk.
        fault: why the one record that the block stands for cannot be read; then there are no data.
    """

    first: int
    data: bytes
    records: int
    offset: int
    read: int
    fault: str | None = None


def line_blocks(path: Path, records: int, offset: int, block_bytes: int) -> Iterator[RawBlock]:
    """Blocks of whole lines, of about ``block_bytes``.

    Args:
        path: a file of lines; compressed if its name says so.
        records: lines that were read before.
        offset: their bytes, decompressed.
        block_bytes: a block ends with the line that goes on there.

    Raises:
        TextError: it cannot be read, or decompressed; names the file, and the line before.
    """
    # The beginning of a line, in pieces; and what was read behind a line that was passed over.
    parts: list[bytes] = []
    held, rest = 0, b""
    with _opened(path, offset) as (read, position):
        while True:
            piece, rest = rest or _read(path, read, block_bytes, records), b""
            first_end, end = piece.find(b"\n") + 1, piece.rfind(b"\n") + 1
            size = held + (first_end or len(piece))
            if size > MAX_LINE_BYTES:
                rest = piece[first_end:] if first_end else b""
                while not first_end and (piece := _read(path, read, block_bytes, records)):
                    first_end = piece.find(b"\n") + 1
                    size += first_end or len(piece)
                    rest = piece[first_end:] if first_end else b""
                parts, held = [], 0
                records, offset = records + 1, offset + size
                fault = f"a line of {size:,} bytes, more than {MAX_LINE_BYTES:,}"
                yield RawBlock(records, b"", records, offset, position(), fault)
                continue
            if piece and not end:
                parts.append(piece)
                held += len(piece)
                continue
            data = b"".join([*parts, piece[:end]])
            parts, held = ([piece[end:]], len(piece) - end) if end < len(piece) else ([], 0)
            if data:
                first = records + 1
                records += data.count(b"\n") + (not data.endswith(b"\n"))
                offset += len(data)
                yield RawBlock(first, data, records, offset, position())
            if not piece:
                return


@contextmanager
def _opened(path: Path, offset: int) -> Iterator[tuple[Any, Any]]:
    """A function that reads at most so many decompressed bytes from ``offset`` on, and one that says how many of the
    file's own were read."""
    compression = COMPRESSIONS.get(path.suffix)
    try:
        file = path.open("rb")
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror})") from None
    with file:
        if compression is None:
            file.seek(offset)
            yield file.read, file.tell
            return
        # Loaded where it is needed: who serves reads no data.
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
        while offset:
            skipped = len(_read(path, stream.read, min(offset, 2**20), 0))
            if not skipped:
                raise TextError(f"{path} is shorter than when it was begun; pack it anew")
            offset -= skipped
        yield stream.read, file.tell


def _read(path: Path, read: Any, size: int, records: int) -> bytes:
    try:
        data: bytes = read(size)
    except OSError as error:
        raise TextError(f"{path}:{records + 1}: cannot be read on from here ({error})") from None
    return data
