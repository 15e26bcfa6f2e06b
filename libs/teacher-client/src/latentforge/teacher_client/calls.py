"""What the two clients of the teacher API have in common: requests, retries, and which sequences are still missing."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import grpc

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.channel import MAX_ATTEMPTS
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.teacher_client.wire import dtype_to_proto, rows_from_proto

RowEncodingName = Literal["arrays", "packed"]

_LONGEST_PAUSE_SECONDS = 32.0
_FIRST_PAUSE_SECONDS = 0.2


def encoding_to_proto(encoding: RowEncodingName) -> pb.RowEncoding.ValueType:
    return pb.ROW_ENCODING_PACKED if encoding == "packed" else pb.ROW_ENCODING_ARRAYS


def score_request(
    fingerprint: str, token_ids: Sequence[int], top_k: int, dtype: LogprobDtype, encoding: RowEncodingName
) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        tokenizer_fingerprint=fingerprint,
        token_ids=token_ids,
        top_k=top_k,
        logprob_dtype=dtype_to_proto(dtype),
        row_encoding=encoding_to_proto(encoding),
    )


def chat_request(messages: Sequence[tuple[str, str]]) -> pb.TokenizeRequest:
    """For the ids of (role, content) pairs."""
    chat = pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for role, content in messages])
    return pb.TokenizeRequest(chat=chat)


@dataclass(frozen=True)
class Scored:
    """One scored sequence of a batch: its index in the request, and its rows or why it has none."""

    index: int
    rows: SparseRows | None
    error: TeacherError | None
    provenance: pb.Provenance


class Retries:
    """How often and when one call is made again.

    A gateway that is gone or going (UNAVAILABLE) is asked again by gRPC itself while nothing was answered; here that
    is done for streams that broke off, and for RESOURCE_EXHAUSTED where the gateway says when to come back.

    Args:
        timeout: seconds for all tries together.
        attempts: tries without any progress.
    """

    def __init__(self, timeout: float, attempts: int = MAX_ATTEMPTS) -> None:
        self._deadline = time.monotonic() + timeout
        self._attempts = attempts
        self._failed = 0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def pause(self, error: TeacherError, *, progress: bool = False) -> float | None:
        """Seconds to wait before the next try; None if there is none.

        Args:
            progress: the failed try answered a part.
        """
        self._failed = 1 if progress else self._failed + 1
        if self._failed >= self._attempts or not may_retry(error):
            return None
        bound = _FIRST_PAUSE_SECONDS * 2.0 ** (self._failed - 1)
        seconds = error.retry_after if error.retry_after is not None else random.uniform(bound / 2, bound)
        seconds = min(seconds, _LONGEST_PAUSE_SECONDS)
        return seconds if seconds < self.seconds_left else None


def may_retry(error: TeacherError) -> bool:
    """Whether the same call may succeed later."""
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a time to come back it is not load but a message that exceeds a cap.
        return error.retry_after is not None
    return error.code is grpc.StatusCode.UNAVAILABLE


class BatchScoring:
    """A ScoreBatch call over its tries: only what is missing is asked for again."""

    def __init__(
        self,
        fingerprint: str,
        sequences: Sequence[Sequence[int]],
        top_k: int,
        dtype: LogprobDtype,
        encoding: RowEncodingName,
    ) -> None:
        self._sequences = sequences
        self._arguments = {
            "tokenizer_fingerprint": fingerprint,
            "top_k": top_k,
            "logprob_dtype": dtype_to_proto(dtype),
            "row_encoding": encoding_to_proto(encoding),
        }
        # In order, and quick to remove from.
        self._missing = dict.fromkeys(range(len(sequences)))
        self._asked: list[int] = []
        self._refused: dict[int, TeacherError] = {}
        self._progress = False

    def request(self) -> pb.ScoreBatchRequest:
        """For what is missing."""
        self._asked, self._refused, self._progress = list(self._missing), {}, False
        return pb.ScoreBatchRequest(
            sequences=[pb.TokenIds(ids=self._sequences[i]) for i in self._asked],
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
            scored = Scored(index, rows_from_proto(answer.score.rows), None, answer.score.provenance)
        del self._missing[index]
        self._progress = True
        return scored

    def failure(self) -> TeacherError | None:
        """Why the stream that ended is not the end: a sequence that may be asked for again, or none at all."""
        if self._refused:
            return max(self._refused.values(), key=lambda error: error.retry_after or 0.0)
        if self._missing:
            text = f"the stream ended before {len(self._missing)} of {len(self._asked)} sequences were answered"
            return TeacherError(grpc.StatusCode.UNAVAILABLE, text)
        return None

    def pause(self, retries: Retries, error: TeacherError) -> float | None:
        """As :meth:`Retries.pause`, but what gRPC has asked for again and again without an answer is given up."""
        if error.code is grpc.StatusCode.UNAVAILABLE and not (self._progress or self._refused):
            return None
        return retries.pause(error, progress=self._progress)

    def given_up(self) -> list[Scored] | None:
        """What is missing as failures of its own, if the gateway refused each; None if the whole call failed."""
        if len(self._refused) < len(self._missing):
            return None
        return [Scored(index, None, self._refused[index], pb.Provenance()) for index in self._missing]
