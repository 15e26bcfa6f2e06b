"""Settings from the environment and .env, refused with one line per wrong field before any work starts."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from latentforge.core.errors import describe_errors

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
        found = describe_errors(error, variables=True, secrets=_secret_fields(settings))
        raise SettingsError("\n".join(found)) from None


def _secret_fields(settings: type[BaseSettings]) -> list[str]:
    return [name for name, field in settings.model_fields.items() if "Secret" in str(field.annotation)]
