"""Refusals as gRPC statuses with google.rpc details."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.scoring.quota import QuotaError

logger = logging.getLogger(__name__)

_DOMAIN = "teacher-gateway.latentforge"
_CODES = {
    FailureKind.REFUSED: grpc.StatusCode.INVALID_ARGUMENT,
    FailureKind.MISCONFIGURED: grpc.StatusCode.FAILED_PRECONDITION,
    FailureKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    FailureKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    FailureKind.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FailureKind.GONE: grpc.StatusCode.UNAVAILABLE,
    FailureKind.TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    FailureKind.BROKEN: grpc.StatusCode.INTERNAL,
    FailureKind.CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
}


# A message travels twice, percent-encoded and, in the details, in base64; all of it has to fit 8 KiB.
_MESSAGE_BYTES = 600
_DESCRIPTION_BYTES = 200
_MOST_VIOLATIONS = 8


def shortened(text: str, size: int) -> str:
    """At most about ``size`` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= size else data[:size].decode("utf-8", "ignore") + "…"


@dataclass(frozen=True)
class Violation:
    """A field of the request, and what is wrong with its value and what is allowed."""

    field: str
    description: str


class ApiError(Exception):
    """What a call ends with.

    Args:
        code: the gRPC status.
        message: what is wrong and what to do; reads well without the details.
        violations: become google.rpc.BadRequest.
        reason: UPPER_SNAKE_CASE, becomes google.rpc.ErrorInfo, so that a program can tell causes apart.
        retry_after: seconds, becomes google.rpc.RetryInfo.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: Sequence[Violation] = (),
        *,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = shortened(message, _MESSAGE_BYTES)
        self.violations = tuple(violations[:_MOST_VIOLATIONS])
        self.reason = reason
        self.retry_after = retry_after

    def status(self) -> status_pb2.Status:
        """The status with its details, bounded: gRPC refuses answers whose metadata exceeds 8 KiB."""
        return status_pb2.Status(
            code=self.code.value[0], message=self.message, details=[_any(detail) for detail in self._details()]
        )

    def _details(self) -> Iterator[Message]:
        if self.violations:
            yield error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field, description=shortened(v.description, _DESCRIPTION_BYTES)
                    )
                    for v in self.violations
                ]
            )
        if self.reason is not None:
            yield error_details_pb2.ErrorInfo(reason=self.reason, domain=_DOMAIN)
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(1000 * self.retry_after))
            yield error_details_pb2.RetryInfo(retry_delay=delay)


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def teacher_failed(error: BackendError) -> ApiError:
    """The status that tells a caller whose fault it was and whether to ask again."""
    if isinstance(error, QuotaError):
        return ApiError(_CODES[error.kind], str(error), reason="QUOTA_EXCEEDED", retry_after=error.retry_after)
    return ApiError(
        _CODES[error.kind],
        f"the teacher failed: {error}",
        reason=f"TEACHER_{error.kind.name}",
        retry_after=error.retry_after,
    )


def log_teacher_failure(error: BackendError) -> None:
    """Says in the log that the teacher failed. A refusal is left out, which quotes the request that it refuses."""
    if error.kind is not FailureKind.REFUSED and not isinstance(error, QuotaError):
        logger.warning("the teacher failed: %s", error)


def invalid_argument(violations: Sequence[Violation]) -> ApiError:
    """INVALID_ARGUMENT whose message reads well without the details."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations[:_MOST_VIOLATIONS])
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, message, violations, reason="INVALID_FIELDS")
