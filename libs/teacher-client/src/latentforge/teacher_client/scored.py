"""What a scored sequence is to a caller, and what is asked of one, to and from messages."""

from dataclasses import dataclass, field
from typing import Literal

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.wire import rows_from_proto

RowEncodingName = Literal["arrays", "packed"]


@dataclass(frozen=True)
class Scored:
    """One scored sequence: its index in the request, and its rows or why it has none.

    Attributes:
        provenance: whose rows they are.
        candidate_logprobs: float32 [rows, m], nats, of the candidates that were asked about; None without any.
        token_ids: what was scored, where a text or a chat was sent; else empty.
        token_strings: how each id of the answer is written, where that was asked for.
    """

    index: int
    rows: SparseRows | None
    error: TeacherError | None
    provenance: pb.Provenance
    candidate_logprobs: NDArray[np.float32] | None = None
    token_ids: list[int] = field(default_factory=list)
    token_strings: dict[int, str] = field(default_factory=dict)


def scored_of(index: int, answer: pb.ScoreResponse, candidates: pb.Candidates | None) -> Scored:
    """
    Raises:
        TeacherError: UNIMPLEMENTED; the gateway is one that does not know candidates, which it passed over.
        ValueError: rows or log-probabilities are not what their message says.
    """
    rows = rows_from_proto(answer.rows)
    ids, strings = list(answer.token_ids), dict(answer.token_strings)
    if candidates is None or not candidates.per_row:
        return Scored(index, rows, None, answer.provenance, None, ids, strings)
    if not answer.candidate_logprobs:
        text = "the gateway does not know candidates; run one of the version of this client"
        raise TeacherError(grpc.StatusCode.UNIMPLEMENTED, text, reason="CANDIDATES_UNSUPPORTED")
    logprobs = np.frombuffer(answer.candidate_logprobs, "<f4").reshape(len(rows), candidates.per_row)
    return Scored(index, rows, None, answer.provenance, logprobs, ids, strings)


def candidates_to_proto(candidates: ArrayLike) -> pb.Candidates:
    """Ids [m] for every row, or [rows, m].

    Raises:
        ValueError: they have another shape, or are no ids.
    """
    ids = np.asarray(candidates)
    if ids.ndim not in (1, 2) or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"candidates are {ids.dtype} {list(ids.shape)}; give ids [m] for every row, or [rows, m]")
    if ids.size and not 0 <= ids.min() <= ids.max() < 1 << 32:
        raise ValueError(f"candidates are {ids.min()} to {ids.max()}; ids are 0 to {(1 << 32) - 1}")
    return pb.Candidates(per_row=ids.shape[-1], ids=ids.reshape(-1).tolist())


def check_revision(provenance: pb.Provenance, expected: str) -> None:
    """Refuses an answer of another revision than ``expected``, unless that is empty.

    Gateways refuse such a request; one that does not know the field answers it, and says whose the answer is.

    Raises:
        TeacherError: FAILED_PRECONDITION with both.
    """
    if expected and provenance.revision != expected:
        raise TeacherError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"expected_revision is {expected!r}, the answer is of {provenance.model} {provenance.revision!r}: the "
            "teacher changed",
            reason="REVISION_MISMATCH",
        )


def encoding_to_proto(encoding: RowEncodingName) -> pb.RowEncoding.ValueType:
    return pb.ROW_ENCODING_PACKED if encoding == "packed" else pb.ROW_ENCODING_ARRAYS
