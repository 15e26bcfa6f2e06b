"""Listening sockets for the services' HTTP servers, and addresses as they are written."""

import socket
from ipaddress import IPv6Address

_BACKLOG = 2048


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that listens, taken before anything slow is done.

    Its protocol is IPPROTO_TCP, not the 0 of :func:`socket.create_server`: asyncio sets TCP_NODELAY only on
    connections whose socket says so, and without it every answer on a kept connection waits some 40 ms for the peer's
    delayed acknowledgement.

    Args:
        host: an address or a name; IPv6 with or without brackets. ``0.0.0.0`` is every IPv4 address, ``::`` every one.
        port: 0 takes a free one.

    Raises:
        OSError: nothing can listen there; ``errno`` is EADDRINUSE where another program does.
    """
    host = bare_host(host)
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    # Its labels: one that is empty, or longer than 63 characters.
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, f"malformed name: {error}") from None
    # Probes ask for 127.0.0.1, so a name that has both kinds is its IPv4 address.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(address)
        server.listen(_BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


def http_address(server: socket.socket) -> str:
    """The URL that a server on this socket has, such as ``http://127.0.0.1:7860`` or ``http://[::1]:7860``."""
    host, port = server.getsockname()[:2]
    return f"http://{host_port(host, port)}"


def browser_address(server: socket.socket) -> str:
    """The same for a browser of this machine, which cannot open ``0.0.0.0``: there it is ``http://localhost:7860``."""
    host, port = server.getsockname()[:2]
    return f"http://localhost:{port}" if host in ("0.0.0.0", "::") else http_address(server)


def bare_host(host: str) -> str:
    """A host without the brackets that an IPv6 address may have."""
    return host.removeprefix("[").removesuffix("]")


def host_port(host: str, port: int) -> str:
    """``127.0.0.1:7860`` or ``[::1]:7860``, whether the address has its brackets already or not."""
    host = bare_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bracketed(target: str) -> str:
    """A target as gRPC and URLs want it: what stands before the last colon has brackets where it is an IPv6 address.

    ``::1:50051`` becomes ``[::1]:50051``; everything else is left as it is.
    """
    host, _, port = target.rpartition(":")
    try:
        IPv6Address(host)
    except ValueError:
        return target
    return f"[{host}]:{port}"
