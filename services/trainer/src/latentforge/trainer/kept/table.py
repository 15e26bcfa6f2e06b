"""Kept rows as Parquet: one line a sequence, nested lists, readable without us.

Bytes a position, measured on the embedded teacher's rows (4,096 ids, k = 20, sequences of 256, zstd level 3): 74 as
Parquet writes lists by itself, 66 with ids in a dictionary, 70 with ids as differences, 65 with every value's bytes in
streams of their own (BYTE_STREAM_SPLIT), and 61 if entries were sorted by id. Sorted entries would be another order of
summation, and so other bits, than a gateway's rows give. Level 9 saves one more byte and takes three times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentforge.core.files import replacing
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.trainer.data.sequence_hash import sequence_hash

# What is read at once for one sequence; smaller, and the footer grows to more than a hundredth of the file.
_POSITIONS_PER_GROUP = 2048
_ZSTD_LEVEL = 3
_NUMPY = {"int32": "<i4", "uint16": "<u2", "uint32": "<u4", "halffloat": "<f2", "float": "<f4"}
_LISTS = ("ids", "realised_logprobs", "realised_ranks", "tail_mass", "unmapped_mass")
_NESTED = ("top_ids", "top_logprobs")


@dataclass(frozen=True)
class KeptSequence:
    """A sequence with the teacher's rows, or why there are none.

    Attributes:
        number: its place in the split's data, or its prompt's number.
        ids: uint32 [L], prompt and continuation where the teacher wrote it.
        rows: for the tokens from ``rows.first_position`` on; none where the teacher failed.
        error: why it failed for good.
        place: of several continuations of one prompt.
        stopped: the teacher ended it itself.
    """

    number: int
    ids: NDArray[np.uint32]
    rows: SparseRows
    error: str | None = None
    place: int = 0
    stopped: bool = False


def kept_schema(vocab_size: int, dtype: LogprobDtype) -> pa.Schema:
    """Columns of the files, for ids below ``vocab_size``."""
    an_id = pa.uint16() if vocab_size <= 2**16 else pa.uint32()
    logprob = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema(
        [
            ("sequence", pa.int64()),
            ("place", pa.int32()),
            ("hash", pa.binary(16)),
            ("ids", pa.list_(an_id)),
            ("first_position", pa.int32()),
            ("top_ids", pa.list_(pa.list_(an_id))),
            ("top_logprobs", pa.list_(pa.list_(logprob))),
            ("realised_logprobs", pa.list_(pa.float32())),
            ("realised_ranks", pa.list_(pa.uint32())),
            ("tail_mass", pa.list_(pa.float32())),
            # Null where the teacher's ids are its own.
            ("unmapped_mass", pa.list_(pa.float32())),
            ("stopped", pa.bool_()),
            # Null of a sequence that has rows.
            ("error", pa.string()),
        ]
    )


def write_kept(path: Path, sequences: Sequence[KeptSequence], schema: pa.Schema) -> None:
    """Writes a file of one or more sequences, whole or not at all."""
    rows = [s.rows for s in sequences]
    unmapped = any(r.unmapped_mass is not None for r in rows)
    columns: dict[str, Any] = {
        "sequence": [s.number for s in sequences],
        "place": [s.place for s in sequences],
        "hash": [sequence_hash(s.ids) for s in sequences],
        "ids": _lists([s.ids for s in sequences], schema.field("ids").type),
        "first_position": [r.first_position for r in rows],
        "top_ids": _nested([r.ids for r in rows], rows, schema.field("top_ids").type),
        "top_logprobs": _nested([r.logprobs for r in rows], rows, schema.field("top_logprobs").type),
        "realised_logprobs": _lists([r.realised_logprobs for r in rows], pa.list_(pa.float32())),
        "realised_ranks": _lists([r.realised_ranks for r in rows], pa.list_(pa.uint32())),
        "tail_mass": _lists([r.tail_mass for r in rows], pa.list_(pa.float32())),
        "unmapped_mass": _lists([_unmapped(r) for r in rows], pa.list_(pa.float32()))
        if unmapped
        else pa.nulls(len(rows), pa.list_(pa.float32())),
        "stopped": [s.stopped for s in sequences],
        "error": [s.error for s in sequences],
    }
    arrays = [
        pa.array(values, field.type) if isinstance(values, list) else values
        for values, field in zip(columns.values(), schema, strict=True)
    ]
    table = pa.table(arrays, schema=schema)
    # No values of a list are alike enough for a dictionary, and nobody looks for rows by their smallest id.
    planes = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _LISTS}
    planes |= {f"{name}.list.element.list.element": "BYTE_STREAM_SPLIT" for name in _NESTED}
    longest = max(len(s.ids) for s in sequences)
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=max(1, _POSITIONS_PER_GROUP // longest),
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            use_dictionary=False,
            write_statistics=False,
            column_encoding=planes,
            write_page_checksum=True,
        )


def read_group(file: pq.ParquetFile, group: int, top_k: int) -> list[KeptSequence]:
    """The sequences of a row group, rows padded to ``top_k`` entries as a gateway gives them."""
    # One thread reads ahead; more would take cores from the step that it reads for.
    table = file.read_row_group(group, use_threads=False)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    plain = {n: columns[n].to_pylist() for n in ("sequence", "place", "first_position", "stopped", "error")}
    unmapped = columns["unmapped_mass"] if columns["unmapped_mass"].null_count < len(table) else None
    found = []
    for i in range(len(table)):
        ids, counts = _padded(columns["top_ids"], i, top_k, np.uint32)
        logprobs, _ = _padded(columns["top_logprobs"], i, top_k, np.float32)
        rows = SparseRows(
            first_position=plain["first_position"][i],
            ids=ids,
            logprobs=logprobs,
            counts=counts,
            realised_logprobs=_list(columns["realised_logprobs"], i),
            realised_ranks=_list(columns["realised_ranks"], i),
            tail_mass=_list(columns["tail_mass"], i),
            unmapped_mass=None if unmapped is None else _list(unmapped, i),
        )
        own = _list(columns["ids"], i).astype(np.uint32)
        found.append(
            KeptSequence(
                plain["sequence"][i], own, rows, plain["error"][i], plain["place"][i], bool(plain["stopped"][i])
            )
        )
    return found


def _unmapped(rows: SparseRows) -> NDArray[np.float32]:
    return np.zeros(len(rows), np.float32) if rows.unmapped_mass is None else rows.unmapped_mass


def _offsets(lengths: Sequence[int] | NDArray[Any]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _lists(parts: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    values = np.concatenate(parts).astype(kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(_offsets([len(p) for p in parts]), pa.array(values, kind.value_type))


def _nested(parts: Sequence[NDArray[Any]], rows: Sequence[SparseRows], kind: pa.DataType) -> pa.Array:
    """Matrices as lists of lists, each row cut to the entries that hold."""
    held = [np.arange(r.top_k)[None] < r.counts[:, None] for r in rows]
    inner = kind.value_type.value_type
    values = np.concatenate([p[h] for p, h in zip(parts, held, strict=True)]).astype(inner.to_pandas_dtype())
    counts = np.concatenate([r.counts for r in rows]).astype(np.int64)
    entries = pa.ListArray.from_arrays(_offsets(counts), pa.array(values, inner))
    return pa.ListArray.from_arrays(_offsets([len(r) for r in rows]), entries)


def _numpy(values: pa.Array) -> NDArray[Any]:
    """A view of an array without nulls; ``to_numpy`` would import pandas, which takes a second, where there is one."""
    dtype = _NUMPY[str(values.type)]
    if not len(values):
        return np.zeros(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype)[values.offset : values.offset + len(values)]


def _list(column: pa.ListArray, i: int) -> NDArray[Any]:
    values: NDArray[Any] = _numpy(column.values)
    offsets = _numpy(column.offsets)
    return values[offsets[i] : offsets[i + 1]]


def _padded(
    column: pa.ListArray, i: int, top_k: int, dtype: type[np.generic]
) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """A sequence's lists as a matrix [n, top_k], and their lengths [n]."""
    outer = _numpy(column.offsets)
    inner = column.values
    bounds = _numpy(inner.offsets)[outer[i] : outer[i + 1] + 1]
    counts = np.diff(bounds)
    values = _numpy(inner.values)[bounds[0] : bounds[-1]]
    matrix = np.zeros((len(counts), top_k), dtype)
    matrix[np.arange(top_k)[None] < counts[:, None]] = values
    return matrix, counts.astype(np.uint16)
