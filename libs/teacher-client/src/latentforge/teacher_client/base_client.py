"""What the two clients of the teacher API have in common: everything but the waiting.

A call is a :class:`Unary` or a :class:`Stream`; ``client`` and ``sync_client`` send it and wait, with asyncio or in a
thread. Neither is the other in disguise: a client for threads that ran the asyncio one on a loop of its own took
answers in at half the speed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message
from pydantic import SecretStr
from tenacity import RetryCallState

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher.v1 import teacher_pb2_grpc
from latentforge.teacher_client.channel import key_metadata
from latentforge.teacher_client.errors import RpcFailure, TeacherError
from latentforge.teacher_client.retries import MAX_ATTEMPTS, Tries

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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
