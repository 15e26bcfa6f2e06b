"""Rows of Parquet files as JSON lines in blocks, at bounded memory."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from latentforge.text.errors import TextError
from latentforge.text.line_blocks import RawBlock

_ROWS_AT_ONCE = 64
# What is wrong with such a row is said where documents are checked.
_NOT_UTF8 = b"\xff"


def parquet_blocks(path: Path, records: int, block_bytes: int, text_column: str | None) -> Iterator[RawBlock]:
    """Blocks of rows; as :func:`latentforge.text.line_blocks.line_blocks`, by rows instead of bytes.

    Raises:
        TextError: it cannot be read, or has none of the columns; names those it has.
    """
    # Loaded where it is needed: who serves reads no data.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffer: whole column chunks, which may be gigabytes, would be read at once without one.
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise TextError(f"{path} cannot be read as Parquet ({error})") from None
    with file:
        columns = chosen_columns(str(path), file.schema_arrow.names, text_column)
        size, num_rows = path.stat().st_size, file.metadata.num_rows
        before, groups = 0, range(file.metadata.num_row_groups)
        while groups and before + file.metadata.row_group(groups[0]).num_rows <= records:
            before += file.metadata.row_group(groups[0]).num_rows
            groups = groups[1:]
        try:
            batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=list(groups), columns=columns) if groups else ()
            rows = (row for batch in batches for row in _rows_of(batch))
            deque(islice(rows, records - before), maxlen=0)
            yield from row_blocks(rows, records, block_bytes, lambda row: size * row // num_rows)
        except (OSError, pa.ArrowException) as error:
            raise TextError(f"{path} cannot be read on ({error})") from None


def chosen_columns(name: str, columns: Sequence[str], text_column: str | None) -> list[str]:
    """The columns that documents are made of.

    Raises:
        TextError: there are none; names those that there are.
    """
    wanted = ("text", "messages") if text_column is None else (text_column,)
    chosen = [column for column in columns if column in wanted]
    if not chosen:
        raise TextError(
            f"{name} has no column {' or '.join(map(repr, wanted))}, but {', '.join(columns)}; name the one that holds "
            "the text with --text-column"
        )
    return chosen


def _rows_of(batch: Any) -> list[dict[str, Any] | None]:
    try:
        rows: list[dict[str, Any] | None] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _rows_of(batch.slice(i, 1))]


def row_blocks(
    rows: Iterator[dict[str, Any] | None], records: int, block_bytes: int, read: Callable[[int], int]
) -> Iterator[RawBlock]:
    """Blocks of rows as JSON lines.

    Args:
        rows: those behind the first ``records``; None for one with text that is not UTF-8.
        records: rows that were read before.
        block_bytes: a block ends with the row that goes on there.
        read: how many bytes were read by a row's number.
    """
    lines: list[bytes] = []
    held, first = 0, records + 1
    for row in rows:
        # What JSON has no word for, a date or bytes, is no text: it is named where documents are checked.
        line = json.dumps(row, ensure_ascii=False, default=lambda value: {"type": type(value).__name__})
        records += 1
        lines.append((_NOT_UTF8 if row is None else line.encode("utf-8", "surrogatepass")) + b"\n")
        held += len(lines[-1])
        if held >= block_bytes:
            yield RawBlock(first, b"".join(lines), records, 0, read(records))
            lines, held, first = [], 0, records + 1
    if lines:
        yield RawBlock(first, b"".join(lines), records, 0, read(records))
