"""What the two clients of the teacher API have in common: everything but the waiting.

A call is a :class:`Unary` or a :class:`Stream` here; ``client`` and ``sync_client`` send it and wait, with asyncio or
in a thread. Neither is the other in disguise: a client for threads that ran the asyncio one on a loop of its own took
answers in at half the speed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray
from pydantic import SecretStr
from tenacity import RetryCallState

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.channel import key_metadata
from latentforge.teacher_client.errors import RpcFailure, TeacherError
from latentforge.teacher_client.retries import MAX_ATTEMPTS, Tries, may_retry
from latentforge.teacher_client.sparse_rows import LogprobDtype, SparseRows
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES, MAX_SEQUENCES, dtype_to_proto, rows_from_proto

RowEncodingName = Literal["arrays", "packed"]
# Token ids, a text, or a chat of (role, content) pairs.
Prompt = Sequence[int] | str | Sequence[tuple[str, str]]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# A varint, and what a message inside a message takes besides its ids.
_BYTES_PER_ID, _BYTES_PER_SEQUENCE = 5, 32
# A request takes several times its bytes while it is made and read; a part of this size keeps a teacher busy for long.
_PART_BYTES = MAX_MESSAGE_BYTES // 4


@dataclass(frozen=True)
class Unary(Generic[T]):
    """A call with one answer.

    Attributes:
        method: the stub's.
        request: what is sent.
        value: what the caller gets of the answer.
    """

    method: str
    request: Message
    value: Callable[[Any], T]


class Stream(Protocol[T_co]):
    """A call with many answers, over its tries."""

    method: str

    @property
    def progress(self) -> bool:
        """Whether this try has answered a part, so that the tries are counted anew."""

    def request(self) -> Message:
        """Begins a try: what is sent, for what is missing."""

    def take(self, answer: Any) -> T_co | None:
        """What the caller gets of one answer; None for nothing."""

    def failure(self, broken: TeacherError | None) -> TeacherError | None:
        """Why the end of a try is not the end of the call; ``broken`` is what the stream ended with, if not well."""

    def may_retry(self, error: BaseException) -> bool:
        """Whether to try again after this."""

    def given_up(self) -> Sequence[T_co] | None:
        """After the last try, what the caller gets instead of the error; None for the error."""


class BaseClient(ABC):
    """A client without its waiting.

    Args:
        target: host:port of the gateway.
        timeout: seconds for one call, its retries and the whole of a stream included.
        api_key: the gateway's GATEWAY_API_KEY, if it has one.
        tls_ca: PEM file of the root certificate that signed the gateway's; None talks without TLS.
        attempts: tries without any progress; 1 never asks again.
        tokenizer_fingerprint: of the tokenizer that makes the ids that are sent: a gateway whose teacher has another
            refuses them. None sends what GetTeacher said first, which is right for ids of this client's ``tokenize``,
            and cannot tell whether others are the teacher's.

    Raises:
        SettingsError: the file of ``tls_ca`` cannot be read or holds no certificate.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 600.0,
        api_key: SecretStr | str | None = None,
        tls_ca: Path | str | None = None,
        attempts: int = MAX_ATTEMPTS,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        self.target = target
        self._timeout, self._attempts = timeout, attempts
        self._metadata = key_metadata(api_key)
        self._own_fingerprint = self._fingerprint = tokenizer_fingerprint
        self._channel = self._open(target, tls_ca)
        self._stub = teacher_pb2_grpc.TeacherServiceStub(self._channel)

    @abstractmethod
    def _open(self, target: str, tls_ca: Path | str | None) -> Any:
        """A channel of the kind that the client waits with."""

    def _meet(self, teacher: pb.GetTeacherResponse) -> pb.GetTeacherResponse:
        """What GetTeacher said; its fingerprint goes with every later request, unless the caller has his own."""
        if self._own_fingerprint is None:
            self._fingerprint = teacher.tokenizer_fingerprint
        return teacher

    def _tries(self) -> Tries:
        return Tries(self._timeout, self._attempts)

    def _send(self, call: Unary[Any] | Stream[Any], tries: Tries) -> Any:
        """What the stub gives, to be waited for."""
        request = call.request if isinstance(call, Unary) else call.request()
        return getattr(self._stub, call.method)(request, timeout=tries.seconds_left, metadata=self._metadata)

    def _failure(self, error: grpc.RpcError) -> TeacherError:
        # What gRPC raises has more than its type says.
        return TeacherError.from_rpc(cast(RpcFailure, error), self.target)

    def _end_try(self, stream: Stream[Any], state: RetryCallState, broken: grpc.RpcError | None) -> None:
        """Raises the TeacherError that a stream's try ended with; nothing where the call is answered."""
        failure = stream.failure(None if broken is None else self._failure(broken))
        if failure is None:
            return
        if stream.progress:
            state.attempt_number = 1
        raise failure


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


def has_ids(prompt: Prompt) -> bool:
    """Whether a prompt is token ids, which mean nothing without their tokenizer's fingerprint."""
    return not isinstance(prompt, str) and not (len(prompt) and isinstance(prompt[0], tuple))


def chat_to_proto(messages: Sequence[tuple[str, str]]) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for role, content in messages])


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


def get_teacher() -> Unary[pb.GetTeacherResponse]:
    return Unary("GetTeacher", pb.GetTeacherRequest(), _whole)


def score(
    fingerprint: str,
    token_ids: Sequence[int],
    top_k: int,
    dtype: LogprobDtype,
    encoding: RowEncodingName,
    expected_revision: str,
) -> Unary[SparseRows]:
    request = pb.ScoreRequest(
        tokenizer_fingerprint=fingerprint,
        token_ids=token_ids,
        top_k=top_k,
        logprob_dtype=dtype_to_proto(dtype),
        row_encoding=encoding_to_proto(encoding),
        expected_revision=expected_revision,
    )

    def value(answer: pb.ScoreResponse) -> SparseRows:
        check_revision(answer.provenance, expected_revision)
        return rows_from_proto(answer.rows)

    return Unary("Score", request, value)


def score_sequence(
    fingerprint: str,
    prompt: Prompt,
    top_k: int,
    candidates: ArrayLike | None,
    dtype: LogprobDtype,
    encoding: RowEncodingName,
    expected_revision: str,
    *,
    token_strings: bool,
    parse_special_tokens: bool,
) -> Unary[Scored]:
    request = pb.ScoreRequest(
        tokenizer_fingerprint=fingerprint,
        token_strings=token_strings,
        parse_special_tokens=parse_special_tokens,
        top_k=top_k,
        logprob_dtype=dtype_to_proto(dtype),
        row_encoding=encoding_to_proto(encoding),
        expected_revision=expected_revision,
        candidates=None if candidates is None else candidates_to_proto(candidates),
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif has_ids(prompt):
        request.token_ids.extend(cast(Sequence[int], prompt))
    else:
        request.chat.CopyFrom(chat_to_proto(cast(Sequence[tuple[str, str]], prompt)))

    def value(answer: pb.ScoreResponse) -> Scored:
        check_revision(answer.provenance, expected_revision)
        return scored_of(0, answer, None if candidates is None else request.candidates)

    return Unary("Score", request, value)


def tokenize(text: str, *, parse_special_tokens: bool) -> Unary[list[int]]:
    request = pb.TokenizeRequest(text=text, parse_special_tokens=parse_special_tokens)
    return Unary("Tokenize", request, _token_ids)


def tokenize_chat(messages: Sequence[tuple[str, str]]) -> Unary[list[int]]:
    return Unary("Tokenize", pb.TokenizeRequest(chat=chat_to_proto(messages)), _token_ids)


def detokenize(fingerprint: str, token_ids: Sequence[int]) -> Unary[str]:
    request = pb.DetokenizeRequest(tokenizer_fingerprint=fingerprint, token_ids=token_ids)
    return Unary("Detokenize", request, lambda answer: answer.text)


def cache_stats() -> Unary[pb.GetCacheStatsResponse]:
    return Unary("GetCacheStats", pb.GetCacheStatsRequest(), _whole)


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


def _whole(answer: Any) -> Any:
    return answer


def _token_ids(answer: pb.TokenizeResponse) -> list[int]:
    return list(answer.token_ids)


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
