"""Who may call, by key: one key for everybody, or one for each client with a name, a share and a quota."""

import hashlib
import hmac
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentforge.core.errors import describe_error
from latentforge.core.settings import SettingsError
from latentforge.gateway.scoring.callers import Caller
from latentforge.gateway.scoring.quota import TokenQuota
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher_client.access import GatewayKey

_FORM = "[[key]] with name and sha256 or key, and perhaps share and tokens_per_minute"


class KeyRefusedError(Exception):
    """No key or a wrong one was sent.

    Attributes:
        reason: KEY_MISSING or KEY_WRONG.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(f"{message}; send the metadata 'authorization: Bearer <the gateway's GATEWAY_API_KEY>'")
        self.reason = reason


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str | None, Field(pattern=r"^[0-9A-Fa-f]{64}$")] = None
    key: GatewayKey | None = None
    share: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    tokens_per_minute: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "_Entry":
        if (self.sha256 is None) == (self.key is None):
            raise ValueError("needs one of sha256 and key")
        return self

    def digest(self) -> bytes:
        if self.key is not None:
            return _digest(self.key.get_secret_value())
        assert self.sha256 is not None
        return bytes.fromhex(self.sha256)

    def caller(self) -> Caller:
        quota = None if self.tokens_per_minute is None else TokenQuota(self.tokens_per_minute)
        return Caller(self.name, self.share, quota, named=True)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: Annotated[list[_Entry], Field(min_length=1)]


class Keys:
    """The keys that open the gateway. Without any, everybody may call.

    Args:
        shared: for everybody; it has no name, so those who send it take turns by connection.
        named: callers by the SHA-256 of their keys.
    """

    def __init__(self, shared: str | None = None, named: dict[bytes, Caller] | None = None) -> None:
        self._shared = None if shared is None else _digest(shared)
        self._named = named or {}

    @property
    def needed(self) -> bool:
        return self._shared is not None or bool(self._named)

    def caller(self, authorization: str | None, connection: str) -> Caller:
        """Who calls.

        Args:
            authorization: the header or metadata of that name.
            connection: the caller's name where the key gives none.

        Raises:
            KeyRefusedError: a key is needed, and none or another was sent.
        """
        if not self.needed:
            return Caller(connection)
        if authorization is None:
            raise KeyRefusedError("no key was sent", "KEY_MISSING")
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        if scheme.lower() == "bearer":
            # Of digests, whose timing tells nothing about a key letter by letter.
            if (caller := self._named.get(digest)) is not None:
                return caller
            if self._shared is not None and hmac.compare_digest(digest, self._shared):
                return Caller(connection)
        raise KeyRefusedError("the key is wrong", "KEY_WRONG")


def load_keys(settings: GatewaySettings) -> Keys:
    """The keys of GATEWAY_API_KEY and GATEWAY_KEYS_FILE.

    Raises:
        SettingsError: the file cannot be read or is not one of keys. Nothing of a key is in its text.
    """
    shared = None if settings.gateway_api_key is None else settings.gateway_api_key.get_secret_value()
    path = settings.gateway_keys_file
    if path is None:
        return Keys(shared)
    named: dict[bytes, Caller] = {}
    for entry in _entries(path):
        if entry.name in (caller.name for caller in named.values()):
            raise SettingsError(f"GATEWAY_KEYS_FILE={path} has two keys of the name {entry.name!r}; give each its own")
        if (other := named.get(entry.digest())) is not None:
            raise SettingsError(
                f"GATEWAY_KEYS_FILE={path} has one key for {other.name!r} and {entry.name!r}; give each its own"
            )
        named[entry.digest()] = entry.caller()
    return Keys(shared, named)


def _entries(path: Path) -> list[_Entry]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"GATEWAY_KEYS_FILE={path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # What is wrong may be quoted there, and may be a key.
        raise SettingsError(f"GATEWAY_KEYS_FILE={path} is not TOML; write {_FORM}") from None
    try:
        return _File.model_validate(content).key
    except ValidationError as error:
        raise SettingsError(f"GATEWAY_KEYS_FILE={path}: {_what_is_wrong(error)}; write {_FORM}") from None


def _what_is_wrong(error: ValidationError) -> str:
    """Without a value or an unknown field's name: either may be a key."""
    sentences = []
    for entry in error.errors(include_url=False, include_context=False):
        path = [str(part) for part in entry["loc"]]
        if entry["type"] != "extra_forbidden":
            sentences.append(describe_error(entry, ".".join(path), quoted=False))
        elif place := ".".join(path[:-1]):
            sentences.append(f"{place} has an unknown field; allowed are {', '.join(_Entry.model_fields)}")
        else:
            sentences.append(f"the top level has an unknown field; allowed is {', '.join(_File.model_fields)}")
    return "; ".join(dict.fromkeys(sentences))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
