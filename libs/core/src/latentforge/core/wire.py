"""Sparse rows to and from their protobuf message: packed little-endian bytes, read back without a copy per entry."""

import numpy as np

from latentforge.core.sparse_rows import LogprobDtype, SparseRows, logprobs_from_bytes, logprobs_to_bytes
from latentforge.teacher.v1 import teacher_pb2 as pb

# A 2048-token answer with 64 float32 entries a row is about 1 MiB; gRPC's default cap of 4 MiB is too near.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_DTYPES: dict[pb.LogprobDtype.ValueType, LogprobDtype] = {
    pb.LOGPROB_DTYPE_UNSPECIFIED: "float16",
    pb.LOGPROB_DTYPE_FLOAT16: "float16",
    pb.LOGPROB_DTYPE_FLOAT32: "float32",
}


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


def rows_to_proto(rows: SparseRows, dtype: LogprobDtype) -> pb.SparseRows:
    return pb.SparseRows(
        num_rows=len(rows),
        top_k=rows.top_k,
        first_position=rows.first_position,
        logprob_dtype=dtype_to_proto(dtype),
        ids=rows.ids.astype("<u4", copy=False).tobytes(),
        logprobs=logprobs_to_bytes(rows.logprobs, dtype),
        counts=rows.counts.astype("<u2", copy=False).tobytes(),
        realised_logprobs=rows.realised_logprobs.astype("<f4", copy=False).tobytes(),
        realised_ranks=rows.realised_ranks.astype("<u4", copy=False).tobytes(),
        tail_mass=rows.tail_mass.astype("<f4", copy=False).tobytes(),
        unmapped_mass=b"" if rows.unmapped_mass is None else rows.unmapped_mass.astype("<f4", copy=False).tobytes(),
    )


def rows_from_proto(message: pb.SparseRows) -> SparseRows:
    """Views of the message's bytes (read-only arrays).

    Raises:
        ValueError: the packed fields do not fit num_rows x top_k.
    """
    shape = (message.num_rows, message.top_k)
    return SparseRows(
        first_position=message.first_position,
        ids=np.frombuffer(message.ids, "<u4").reshape(shape),
        logprobs=logprobs_from_bytes(message.logprobs, dtype_from_proto(message.logprob_dtype), shape),
        counts=np.frombuffer(message.counts, "<u2"),
        realised_logprobs=np.frombuffer(message.realised_logprobs, "<f4"),
        realised_ranks=np.frombuffer(message.realised_ranks, "<u4"),
        tail_mass=np.frombuffer(message.tail_mass, "<f4"),
        unmapped_mass=np.frombuffer(message.unmapped_mass, "<f4") if message.unmapped_mass else None,
    )
