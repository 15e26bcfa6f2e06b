"""The calls with many answers, over their tries."""

from collections.abc import Iterator, Sequence

import grpc
import numpy as np
from numpy.typing import ArrayLike

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.retries import may_retry
from latentforge.teacher_client.scored import (
    RowEncodingName,
    Scored,
    candidates_to_proto,
    check_revision,
    encoding_to_proto,
    scored_of,
)
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES, MAX_SEQUENCES, dtype_to_proto

# A varint, and what a message inside a message takes besides its ids.
_BYTES_PER_ID, _BYTES_PER_SEQUENCE = 5, 32
# A request takes several times its bytes while it is made and read; a part of this size keeps a teacher busy for long.
_PART_BYTES = MAX_MESSAGE_BYTES // 4


class Generating:
    """A Generate call: what has begun cannot be begun again, since other tokens could come."""

    method = "Generate"

    def __init__(self, fingerprint: str, request: pb.GenerateRequest) -> None:
        self._request = pb.GenerateRequest()
        self._request.CopyFrom(request)
        # The caller's own, if he has said one.
        self._request.tokenizer_fingerprint = request.tokenizer_fingerprint or fingerprint
        self._begun: set[int] = set()
        self.progress = False

    def request(self) -> pb.GenerateRequest:
        return self._request

    def take(self, answer: pb.GenerateResponse) -> pb.GenerateResponse:
        if answer.index not in self._begun:
            self._begun.add(answer.index)
            check_revision(answer.provenance, self._request.expected_revision)
        self.progress = True
        return answer

    def failure(self, broken: TeacherError | None) -> TeacherError | None:
        return broken

    def may_retry(self, error: BaseException) -> bool:
        return not self.progress and may_retry(error)

    def given_up(self) -> None:
        return None


def batch_parts(sequences: Sequence[Sequence[int]], candidates: Sequence[ArrayLike] | None = None) -> Iterator[range]:
    """Consecutive indices that one ScoreBatch may hold; one sequence that is too large alone is a part of its own."""
    if candidates is not None and len(candidates) != len(sequences):
        raise ValueError(f"{len(candidates)} candidates for {len(sequences)} sequences; give one for each")
    start = size = 0
    for index, ids in enumerate(sequences):
        num_ids = len(ids) + (0 if candidates is None else np.size(candidates[index]))
        own = _BYTES_PER_SEQUENCE + _BYTES_PER_ID * num_ids
        if index > start and (size + own > _PART_BYTES or index - start == MAX_SEQUENCES):
            yield range(start, index)
            start, size = index, 0
        size += own
    # An empty batch is asked as well: what is wrong with the rest of the request is said then.
    yield range(start, len(sequences))


class BatchScoring:
    """A ScoreBatch call over its tries: only what is missing is asked for again.

    Args:
        part: indices of the sequences that it is for.
    """

    method = "ScoreBatch"

    def __init__(
        self,
        fingerprint: str,
        sequences: Sequence[Sequence[int]],
        top_k: int,
        dtype: LogprobDtype,
        encoding: RowEncodingName,
        expected_revision: str,
        candidates: Sequence[ArrayLike] | None = None,
        part: range | None = None,
    ) -> None:
        part = range(len(sequences)) if part is None else part
        self._sequences, self._expected_revision = sequences, expected_revision
        self._candidates = None if candidates is None else {i: candidates_to_proto(candidates[i]) for i in part}
        self._arguments = {
            "tokenizer_fingerprint": fingerprint,
            "top_k": top_k,
            "logprob_dtype": dtype_to_proto(dtype),
            "row_encoding": encoding_to_proto(encoding),
            "expected_revision": expected_revision,
        }
        # In order, and quick to remove from.
        self._missing = dict.fromkeys(part)
        self._asked: list[int] = []
        self._refused: dict[int, TeacherError] = {}
        self.progress = False

    def request(self) -> pb.ScoreBatchRequest:
        """For what is missing."""
        self._asked, self._refused, self.progress = list(self._missing), {}, False
        return pb.ScoreBatchRequest(
            sequences=[pb.TokenIds(ids=self._sequences[i]) for i in self._asked],
            candidates=[] if self._candidates is None else [self._candidates[i] for i in self._asked],
            **self._arguments,  # type: ignore[arg-type]
        )

    def take(self, answer: pb.ScoreBatchResponse) -> Scored | None:
        """One answer; None if that sequence will be asked for again."""
        index = self._asked[answer.index]
        if answer.HasField("error"):
            error = TeacherError.from_status(answer.error)
            if may_retry(error):
                self._refused[index] = error
                return None
            scored = Scored(index, None, error, pb.Provenance())
        else:
            check_revision(answer.score.provenance, self._expected_revision)
            scored = scored_of(index, answer.score, None if self._candidates is None else self._candidates[index])
        del self._missing[index]
        self.progress = True
        return scored

    def failure(self, broken: TeacherError | None) -> TeacherError | None:
        """Why the stream that ended is not the end: it broke, or a sequence may be asked for again or has no answer.

        A stream that breaks after its last answer has left nothing to ask for; an empty batch has no answer before.
        """
        if not self._missing:
            return None if self._asked else broken
        if broken is not None:
            return broken
        if self._refused:
            return max(self._refused.values(), key=lambda error: error.retry_after or 0.0)
        text = f"the stream ended before {len(self._missing)} of {len(self._asked)} sequences were answered"
        return TeacherError(grpc.StatusCode.UNAVAILABLE, text)

    def may_retry(self, error: BaseException) -> bool:
        return may_retry(error)

    def given_up(self) -> list[Scored] | None:
        """What is missing as failures of its own, if the gateway refused each; None if the whole call failed."""
        if not self._asked or len(self._refused) < len(self._missing):
            return None
        return [Scored(index, None, self._refused[index], pb.Provenance()) for index in self._missing]
