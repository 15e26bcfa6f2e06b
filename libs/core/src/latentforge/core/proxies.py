"""Loopback is never asked through a proxy, whatever HTTP_PROXY says; errors of other addresses name the proxy."""

import os
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from latentforge.core.sockets import bracketed

_WEB = ("http", "https")
# In the order in which gRPC looks at them, lower case alone.
_GRPC_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


def is_loopback(address: str) -> bool:
    """Whether a URL, or a gRPC target like ``localhost:50051``, means this machine itself.

    ``0.0.0.0`` and ``::`` do as well: whoever connects to them arrives at the loopback.
    """
    host = _split(address).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ip_address(host)
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


def unusable_proxy(error: Exception) -> str:
    """What to say where an httpx client cannot be made: it makes one of each proxy that the environment has."""
    # The text of other errors, those of malformed URLs, may have a piece of the proxy's password.
    reason = str(error) if isinstance(error, ImportError | ValueError) else "its URL is malformed"
    names = ", ".join(f"{kind}_proxy" for kind in (*_WEB, "all") if kind in getproxies())
    return f"a proxy of the environment ({names}) cannot be used: {reason}; correct or unset it"


def proxy_hint(address: str) -> str:
    """What an error says more where the environment sends a URL or a gRPC target through a proxy; else nothing."""
    parts = _split(address)
    host = parts.hostname
    if not host or is_loopback(address) or proxy_bypass(host):
        return ""
    if parts.scheme in _WEB:
        variables = [f"{kind}_proxy" for kind in (parts.scheme, "all") if kind in getproxies()]
    else:
        variables = [name for name in _GRPC_VARIABLES if os.environ.get(name)]
    return f"; {variables[0]} sends this through a proxy, no_proxy={host} would not" if variables else ""


def _split(address: str) -> SplitResult:
    """A URL's parts; a target without a scheme, or with gRPC's ``dns:///``, has its host where a URL has it."""
    scheme, separator, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"{scheme or 'grpc'}://{rest.lstrip('/')}" if separator else f"grpc://{bracketed(address)}")
        parts.hostname  # noqa: B018  looks at the brackets of an IPv6 address
    except ValueError:
        return urlsplit("")
    return parts
