"""One look at an API's list of models, with the one cause why it is unavailable."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import SecretStr

from latentforge.core.proxies import proxy_hint
from latentforge.gateway.backends.http_api import error_text, open_client, without_key
from latentforge.gateway.settings import shown_url

_SECONDS = 10.0


class ListingError(RuntimeError):
    """Why there is no list of models, in one line."""


async def listed_models(setting: str, url: str, path: str, key_setting: str, key: SecretStr | None) -> dict[str, Any]:
    """What GET {url}{path} answers: an object whose ``data`` is a list of objects.

    Args:
        setting: the environment variable that gave ``url``, for errors; ``key_setting`` likewise.

    Raises:
        SettingsError: the URL or the key is malformed.
        ListingError: there is no such answer.
    """
    base, client = open_client(url, setting, key, key_setting, timeout=_SECONDS)
    shown = f"{setting}={shown_url(url)}"
    try:
        async with client:
            response = await client.get(base + path)
    except httpx.TimeoutException:
        raise ListingError(f"{shown} did not answer within {_SECONDS:g} s; check the address and firewalls") from None
    except httpx.RequestError as error:
        raise ListingError(f"{shown} cannot be reached: {_cause(error, httpx.URL(base))}{proxy_hint(base)}") from None
    _check_status(response, shown, path, key_setting, key)
    try:
        answer: dict[str, Any] = response.json()
        if all(isinstance(model, dict) for model in answer["data"]):
            return answer
    except (ValueError, KeyError, TypeError):
        pass
    raise ListingError(f"{shown} answers GET {path} with something else than a list of models")


def _check_status(response: httpx.Response, shown: str, path: str, key_setting: str, key: SecretStr | None) -> None:
    status = response.status_code
    if status == httpx.codes.OK:
        return
    if status in (401, 403):
        what = "is not set, and the server wants one" if key is None else "is wrong"
        raise ListingError(f"{key_setting} {what}: {shown} answers {status}; set the right key in .env")
    if status == httpx.codes.PAYMENT_REQUIRED:
        raise ListingError(f"{shown} answers 402: the account of {key_setting} has no credit")
    if status == httpx.codes.NOT_FOUND:
        raise ListingError(f"{shown} answers 404 to GET {path}; is it the API's base URL?")
    raise ListingError(f"{shown} answers {status} to GET {path}: {without_key(error_text(response.content), key)}")


def _cause(error: BaseException, url: httpx.URL) -> str:
    causes = list(_chain(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"the host {url.host} is unknown; check its spelling and this machine's DNS"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "the connection is refused, so nothing listens at that port; check it, and that the server runs"
    return f"{error or type(error).__name__}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and whatever it was made of."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _chain(inner)
        error = error.__cause__ or error.__context__
