"""The span of a call, in the terms of gRPC."""

from collections.abc import Mapping

import grpc

from latentforge.core.tracing import ServerSpan, Tracing


def start_call(tracing: Tracing, method: str, metadata: Mapping[str, str]) -> ServerSpan:
    """The server's span; it continues the caller's trace where ``metadata`` has a W3C traceparent."""
    service, _, name = method.partition("/")
    return tracing.start_server_span(
        method, metadata, {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    )


def end_call(span: ServerSpan, code: grpc.StatusCode, request_id: str, *, tokens: int, rows: int) -> None:
    attributes: dict[str, str | int] = {
        "rpc.grpc.status_code": code.value[0],
        "latentforge.request_id": request_id,
        "latentforge.tokens": tokens,
        "latentforge.rows": rows,
    }
    span.end(attributes, None if code is grpc.StatusCode.OK else code.name)
