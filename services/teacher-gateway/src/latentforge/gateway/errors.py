"""Refusals as gRPC statuses with google.rpc details."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Violation:
    """A field of the request, and what is wrong with its value and what is allowed."""

    field: str
    description: str


class ApiError(Exception):
    """What a call ends with; ``violations`` become google.rpc.BadRequest."""

    def __init__(self, code: grpc.StatusCode, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.violations = tuple(violations)

    def status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.violations:
            detail = any_pb2.Any()
            detail.Pack(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                        for v in self.violations
                    ]
                )
            )
            status.details.append(detail)
        return status


def invalid_argument(violations: Sequence[Violation]) -> ApiError:
    """INVALID_ARGUMENT whose message reads well without the details."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, message, violations)
