"""What is common to all who ask an HTTP API: its URL and key, neither of which may show, and what its errors say."""

import re
from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from latentforge.core.proxies import is_loopback, unusable_proxy
from latentforge.core.settings import SettingsError
from latentforge.gateway.settings import shown_url

_SHOWN_CHARACTERS = 300


def open_client(
    url: str, setting: str, key: SecretStr | None, key_setting: str, **options: Any
) -> tuple[str, httpx.AsyncClient]:
    """The URL that paths are appended to, and a client that sends the key, or else the password in the URL.

    The returned URL is without user and password, since the client's own log lines and errors show whole URLs.

    Args:
        setting: the environment variable that gave ``url``, for errors; ``key_setting`` likewise.
        options: of httpx.AsyncClient.

    Raises:
        SettingsError: the URL or the key is malformed, or a proxy of the environment cannot be used.
    """
    parsed = parsed_url(url, setting)
    check_key(key, key_setting)
    base = str(parsed.copy_with(username=None, password=None)).rstrip("/")
    try:
        client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            auth=(parsed.username, parsed.password) if parsed.userinfo and key is None else None,
            trust_env=not is_loopback(base),
            # Made here since a client without the environment's proxies ignores its SSL_CERT_FILE as well.
            verify=httpx.create_ssl_context(),
            **options,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise SettingsError(unusable_proxy(error)) from None
    return base, client


def parsed_url(url: str, setting: str) -> httpx.URL:
    """
    Raises:
        SettingsError: it is no URL of an HTTP API.
    """
    # With an @ it may hold a password, which nothing that is wrong with it may show.
    secret = "@" in url
    reason = ""
    try:
        parsed = httpx.URL(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.host) and not shown_url(url).endswith("(hidden)")
    except httpx.InvalidURL as error:
        good, reason = False, "" if secret else f" ({error})"
    if not good:
        shown = shown_url(url) if secret else repr(url)
        raise SettingsError(
            f"{setting} malformed {shown}{reason}; allowed is http(s)://host[:port][/path], an IPv6 address in brackets"
        )
    return parsed


def check_key(key: SecretStr | None, setting: str) -> None:
    """
    Raises:
        SettingsError: no header can carry the key.
    """
    if key is not None and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise SettingsError(f"{setting} has characters that no key has; copy it again")


def error_text(body: bytes) -> str:
    """What an error body says: {"error": "text"}, {"error": {"message": …}}, {"message": …} or {"detail": …}."""
    try:
        content: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = body.decode("utf-8", "replace")
    if isinstance(content, dict):
        content = content.get("error", content.get("message", content.get("detail", content)))
    if isinstance(content, dict):
        content = content.get("message", content)
    return str(content)[:_SHOWN_CHARACTERS].strip() or "nothing"


def without_key(text: str, key: SecretStr | None) -> str:
    """Some servers repeat a key that they refuse."""
    return text if key is None else text.replace(key.get_secret_value(), "***")
