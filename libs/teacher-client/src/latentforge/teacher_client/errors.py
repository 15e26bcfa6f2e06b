"""What a gateway refused or failed to do, read from the status and its google.rpc details."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from latentforge.core.proxies import proxy_hint
from latentforge.core.request_id import REQUEST_ID

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request, and what is wrong with its value and what is allowed."""

    field: str
    description: str


class RpcFailure(Protocol):
    """What grpc.RpcError is in fact, from asyncio and from threads."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Any: ...


class TeacherError(RuntimeError):
    """What the gateway refused or failed to do.

    Attributes:
        code: the gRPC status.
        message: what is wrong and what to do.
        violations: of INVALID_ARGUMENT, one per wrong field.
        reason: tells causes with one code apart, as TOKENIZER_MISMATCH; None where no gateway answered.
        retry_after: seconds after which to ask again, where the gateway knows.
        request_id: the call's name in the gateway's log.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        reason: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.violations = violations
        self.reason = reason
        self.retry_after = retry_after
        self.request_id = request_id

    @classmethod
    def from_status(cls, status: status_pb2.Status, *, request_id: str | None = None) -> Self:
        """The error that a google.rpc.Status tells."""
        violations, info, retry = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo(), None
        for detail in status.details:
            detail.Unpack(violations)
            detail.Unpack(info)
            delay = error_details_pb2.RetryInfo()
            if detail.Unpack(delay):
                retry = delay.retry_delay.ToTimedelta().total_seconds()
        return cls(
            _status_code(status.code),
            status.message,
            violations=tuple(FieldViolation(v.field, v.description) for v in violations.field_violations),
            reason=info.reason or None,
            retry_after=retry,
            request_id=request_id,
        )

    @classmethod
    def from_rpc(cls, error: RpcFailure, target: str) -> Self:
        """The error of a call to the gateway at ``target``."""
        metadata = dict(_pairs(error.trailing_metadata()))
        request_id = metadata.get(REQUEST_ID)
        details = metadata.get(_DETAILS_KEY)
        if isinstance(details, bytes):
            try:
                return cls.from_status(status_pb2.Status.FromString(details), request_id=request_id)
            except DecodeError:
                pass
        message = error.details() or "no details"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            message = f"no teacher-gateway answers at {target} ({message}); start it or set GATEWAY_TARGET"
            if "handshake" in message.lower():
                message += ", or set GATEWAY_TLS_CA to the root certificate that signed its own"
            message += proxy_hint(target)
        return cls(error.code(), message, request_id=request_id)


def _pairs(metadata: Any) -> Iterable[tuple[str, Any]]:
    return ((key, value) for key, value in metadata or ())


def _status_code(number: int) -> grpc.StatusCode:
    return next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)
