"""Container health checks. Usage: healthcheck.py grpc PORT | http PORT PATH; exit code 0 for healthy."""

import os
import socket
import ssl
import sys
import urllib.request
from pathlib import Path
from typing import Any

# Docker's client configuration may put HTTP_PROXY into every container; what is asked here is this container itself.
_NO_PROXY = (("grpc.enable_http_proxy", 0),)


def grpc_serving(port: int) -> bool:
    import grpc  # the other images need not have it
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    target, certificate = f"127.0.0.1:{port}", os.environ.get("GATEWAY_TLS_CERT")
    if certificate:
        trusted = Path(os.environ.get("GATEWAY_TLS_CA") or certificate).read_bytes()
        # The certificate is for the gateway's name, which is not that of the loopback.
        name = (("grpc.ssl_target_name_override", tls_name(port, trusted.decode())),)
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(trusted), options=(*_NO_PROXY, *name))
    else:
        channel = grpc.insecure_channel(target, options=_NO_PROXY)
    with channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def tls_name(port: int, trusted: str) -> str:
    """A name that the server's certificate is for."""
    context = ssl.create_default_context(cadata=trusted)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as tls:
        certificate: dict[str, Any] = tls.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return next(str(value).replace("*", "any") for kind, value in names if kind in ("DNS", "IP Address"))


def http_ok(port: int, path: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return bool(answer.status == 200)


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    try:
        healthy = grpc_serving(port) if kind == "grpc" else http_ok(port, sys.argv[3])
    except Exception as error:
        sys.exit(f"unhealthy: {error}")
    sys.exit(None if healthy else "unhealthy")
