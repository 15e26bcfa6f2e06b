"""Channels to a teacher-gateway: caps, pings, TLS and the key, the same for asyncio and for threads."""

import ssl
from pathlib import Path
from typing import Any

import grpc
from pydantic import SecretStr

from latentforge.core.errors import unreadable
from latentforge.core.proxies import is_loopback
from latentforge.core.settings import SettingsError
from latentforge.core.sockets import bracketed
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES

_FIRST_RECONNECT_MS, _LONGEST_RECONNECT_MS = 200, 5_000
# A gateway whose machine is gone closes nothing; without pings a call would wait for its whole timeout.
_KEEPALIVE_MS, _PING_TIMEOUT_MS = 30_000, 20_000


def channel_options(target: str) -> list[tuple[str, Any]]:
    """Options of a channel."""
    return [
        ("grpc.enable_http_proxy", int(not is_loopback(target))),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # What is tried again is latentforge.teacher_client.retries' alone.
        ("grpc.enable_retries", 0),
        # By default a channel that could not connect does not even try for up to two minutes, whoever asks.
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        # This one, not keepalive_timeout_ms, ends calls when a ping is not answered (seen with grpcio 1.85).
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        # A call that waits for its answer sends no data between pings.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def channel_credentials(tls_ca: Path | str | None) -> grpc.ChannelCredentials | None:
    """TLS that trusts the root certificate in a PEM file; None, which is no TLS, where there is no file.

    Raises:
        SettingsError: the file cannot be read or holds no certificate.
    """
    if tls_ca is None:
        return None
    try:
        data = Path(tls_ca).read_bytes()
        # gRPC itself would only fail at the first call, and say less.
        ssl.create_default_context(cadata=data.decode())
    except (ssl.SSLError, ValueError):
        raise SettingsError(f"GATEWAY_TLS_CA={tls_ca} holds no PEM certificate") from None
    except OSError as error:
        raise SettingsError(f"GATEWAY_TLS_CA={tls_ca} cannot be read: {unreadable(error)}") from None
    return grpc.ssl_channel_credentials(data)


def key_metadata(api_key: SecretStr | str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that shows the gateway's key."""
    if api_key is None:
        return ()
    key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
    return (("authorization", f"Bearer {key}"),)


def open_channel(target: str, *, tls_ca: Path | str | None = None) -> grpc.Channel:
    """A channel for threads to ``host:port``."""
    target, credentials = bracketed(target), channel_credentials(tls_ca)
    if credentials is None:
        return grpc.insecure_channel(target, options=channel_options(target))
    return grpc.secure_channel(target, credentials, options=channel_options(target))


def open_aio_channel(target: str, *, tls_ca: Path | str | None = None) -> grpc.aio.Channel:
    """A channel for asyncio to ``host:port``."""
    target, credentials = bracketed(target), channel_credentials(tls_ca)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=channel_options(target))
    return grpc.aio.secure_channel(target, credentials, options=channel_options(target))
