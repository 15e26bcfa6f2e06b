"""Who may call, and over what: the bearer keys and TLS."""

import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health

from latentforge.core.errors import unreadable
from latentforge.core.settings import SettingsError
from latentforge.gateway.keys import KeyRefusedError, Keys
from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.rpc.interceptor import Context, HandlerInterceptor, abort, authorization_of
from latentforge.gateway.settings import GatewaySettings

# Whoever watches over the gateway need not have its key, and learns nothing but whether it serves.
_OPEN_SERVICES = (f"/{health.SERVICE_NAME}",)


class KeyInterceptor(HandlerInterceptor):
    """Lets in who sends ``authorization: Bearer KEY``; health is open to all, reflection is not."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def wrapped(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        if details.method.rpartition("/")[0] in _OPEN_SERVICES:
            return handler
        try:
            self._keys.caller(authorization_of(details.invocation_metadata), "")
        except KeyRefusedError as refused:
            return _refusing(handler, ApiError(grpc.StatusCode.UNAUTHENTICATED, str(refused), reason=refused.reason))
        return handler


def _refusing(handler: Any, refusal: ApiError) -> Any:
    """A handler of the same shape that never looks at the request."""

    async def refuse(request: Any, context: Context) -> None:
        await abort(context, refusal)

    async def refuse_stream(request: Any, context: Context) -> AsyncIterator[Any]:
        await abort(context, refusal)
        yield

    def unread(data: bytes) -> None:
        return None

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream, unread)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream, unread)
    return grpc.unary_unary_rpc_method_handler(refuse, unread)


def server_credentials(settings: GatewaySettings) -> grpc.ServerCredentials | None:
    """TLS of GATEWAY_TLS_CERT and GATEWAY_TLS_KEY, or None where they are not set.

    Raises:
        SettingsError: one is set without the other, a file cannot be read, or the two do not belong together.
    """
    certificate, key = settings.gateway_tls_cert, settings.gateway_tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = ("KEY", "CERT") if certificate is None else ("CERT", "KEY")
        raise SettingsError(f"GATEWAY_TLS_{given} is set without GATEWAY_TLS_{missing}; TLS needs both files")
    data = []
    for name, path in (("GATEWAY_TLS_CERT", certificate), ("GATEWAY_TLS_KEY", key)):
        try:
            data.append(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"{name}={path} cannot be read: {unreadable(error)}") from None
    try:
        # gRPC itself would fail at the first handshake, and say less.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        text = f"GATEWAY_TLS_CERT={certificate} and GATEWAY_TLS_KEY={key} are no PEM certificate and its key ({reason})"
        raise SettingsError(text) from None
    return grpc.ssl_server_credentials([(data[1], data[0])])
