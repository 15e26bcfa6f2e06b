"""Sparse rows to and from their protobuf message: packed little-endian bytes, read back without a copy per entry."""

from dataclasses import fields

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import (
    CorruptRowsError,
    LogprobDtype,
    PackedRows,
    SparseRows,
    array_bytes,
    rows_of_arrays,
)

# A 2048-token answer with 64 float32 entries a row is about 1 MiB; gRPC's default cap of 4 MiB is too near.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Of a ScoreBatch.
MAX_SEQUENCES = 16384

_DTYPES: dict[pb.LogprobDtype.ValueType, LogprobDtype] = {
    pb.LOGPROB_DTYPE_UNSPECIFIED: "float16",
    pb.LOGPROB_DTYPE_FLOAT16: "float16",
    pb.LOGPROB_DTYPE_FLOAT32: "float32",
}
_ENCODINGS: dict[pb.RowEncoding.ValueType, bool] = {
    pb.ROW_ENCODING_UNSPECIFIED: False,
    pb.ROW_ENCODING_ARRAYS: False,
    pb.ROW_ENCODING_PACKED: True,
}
_ARRAYS = [field.name for field in fields(SparseRows)[1:]]


def dtype_from_proto(value: pb.LogprobDtype.ValueType) -> LogprobDtype:
    """The dtype that a request asks for; unset means float16.

    Raises:
        ValueError: a number that the API does not define.
    """
    if value not in _DTYPES:
        raise ValueError(f"logprob_dtype is {value}; use 1 (float16) or 2 (float32)")
    return _DTYPES[value]


def dtype_to_proto(dtype: LogprobDtype) -> pb.LogprobDtype.ValueType:
    return pb.LOGPROB_DTYPE_FLOAT32 if dtype == "float32" else pb.LOGPROB_DTYPE_FLOAT16


def is_packed(encoding: pb.RowEncoding.ValueType) -> bool:
    """Whether a request wants ``packed`` instead of the arrays; unset means arrays.

    Raises:
        ValueError: a number that the API does not define.
    """
    if encoding not in _ENCODINGS:
        raise ValueError(f"row_encoding is {encoding}; use 1 (arrays) or 2 (packed)")
    return _ENCODINGS[encoding]


def rows_to_proto(rows: SparseRows | PackedRows, dtype: LogprobDtype, *, packed: bool = False) -> pb.SparseRows:
    """The message for rows; packed rows have ``dtype`` already.

    Raises:
        CorruptRowsError: packed rows do not decompress.
    """
    if packed:
        if isinstance(rows, SparseRows):
            rows = PackedRows.of(rows, dtype)
        return pb.SparseRows(num_rows=len(rows), top_k=rows.top_k, first_position=rows.first_position, packed=rows.data)
    return pb.SparseRows(
        num_rows=len(rows),
        top_k=rows.top_k,
        first_position=rows.first_position,
        logprob_dtype=dtype_to_proto(dtype),
        **(rows.arrays() if isinstance(rows, PackedRows) else array_bytes(rows, dtype)),
    )


def rows_from_proto(message: pb.SparseRows) -> SparseRows:
    """Rows of either encoding; arrays are views of the message's bytes (read-only).

    Raises:
        ValueError: the fields do not fit num_rows x top_k, or what is packed is corrupt.
    """
    shape = (message.num_rows, message.top_k)
    if message.packed:
        rows = PackedRows.read(message.packed)
        if (rows.num_rows, rows.top_k, rows.first_position) != (*shape, message.first_position):
            raise CorruptRowsError(f"packed rows of another shape or place than the message's {shape}")
        return rows.unpacked()
    arrays = {name: getattr(message, name) for name in _ARRAYS if name != "unmapped_mass" or message.unmapped_mass}
    return rows_of_arrays(arrays, dtype_from_proto(message.logprob_dtype), shape, message.first_position)
