"""Settings from the environment and .env, refused with one line per wrong field before any work starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_SECRETS = Path("/run/secrets")


class SettingsError(ValueError):
    """Settings that cannot be used; the message names every field, its value and what is allowed."""


class ServiceSettings(BaseSettings):
    """Base of every service's settings: environment over .env over defaults; unknown variables are left alone."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        secrets_dir=_SECRETS if _SECRETS.is_dir() else None,
    )


S = TypeVar("S", bound=BaseSettings)


def load_settings(settings: type[S], **overrides: Any) -> S:
    """Builds settings; ``None`` overrides (options that were not given) are left out.

    Raises:
        SettingsError: a value is wrong.
    """
    try:
        return settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(describe_errors(error, secrets=_secret_fields(settings), variables=True)) from None


def describe_errors(error: ValidationError, *, secrets: Sequence[str] = (), variables: bool = False) -> str:
    """One line per wrong field: name, value (never a secret's) and what is allowed.

    With ``variables``, fields are named as the environment variables that set them.
    """
    lines = []
    for entry in error.errors(include_url=False):
        path = [str(part) for part in entry["loc"]]
        name = ".".join(path) or "settings"
        name = name.upper() if variables else name
        value = "(hidden)" if path and path[0] in secrets else repr(entry["input"])
        given = f" is {value}" if path and entry["type"] != "missing" else ""
        lines.append(f"{name}{given}: {entry['msg']}")
    return "\n".join(lines)


def _secret_fields(settings: type[BaseSettings]) -> list[str]:
    return [name for name, field in settings.model_fields.items() if "Secret" in str(field.annotation)]
