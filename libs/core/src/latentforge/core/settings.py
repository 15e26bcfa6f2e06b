"""Settings from the environment and .env, refused with one line per wrong field before any work starts."""

import logging
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from latentforge.core.errors import describe_errors, unreadable

_SECRETS = Path("/run/secrets")

logger = logging.getLogger(__name__)


class SettingsError(ValueError):
    """Settings that cannot be used; the message names every field, its value and what is allowed."""


class SecretFiles(SecretsSettingsSource):
    """Files of /run/secrets, where containers have their secrets: each is named like a setting and holds its value.

    An empty one counts as unset, as an empty variable does.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        try:
            value, key, is_complex = super().get_field_value(field, field_name)
        except (OSError, UnicodeError) as error:
            reason = unreadable(error) if isinstance(error, OSError) else "it is not UTF-8"
            raise SettingsError(f"{field_name.upper()}: {_SECRETS / field_name} cannot be read: {reason}") from None
        return value or None, key, is_complex


class ServiceSettings(BaseSettings):
    """Base of every service's settings: environment over .env over files of /run/secrets over defaults.

    Unknown variables are left alone, and named in a warning where they begin with a prefix of this class: whoever
    misspelt one would otherwise wonder for long.

    Attributes:
        prefixes: what the names of this class's variables, and few others, begin with.
        others: names with these prefixes that another service reads.
    """

    prefixes: ClassVar[tuple[str, ...]] = ()
    others: ClassVar[frozenset[str]] = frozenset()

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [SecretFiles(settings_cls, _SECRETS)] if _SECRETS.is_dir() else []
        return (init_settings, env_settings, dotenv_settings, *files)


S = TypeVar("S", bound=ServiceSettings)


def load_settings(settings: type[S], **overrides: Any) -> S:
    """Builds settings; ``None`` overrides (options that were not given) are left out. Warns of unknown variables.

    Raises:
        SettingsError: a value is wrong.
    """
    if unknown := unknown_variables(settings):
        logger.warning("no setting is called %s", ", ".join(unknown))
    try:
        return settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        found = describe_errors(error, variables=True, secrets=_secret_fields(settings))
        raise SettingsError("\n".join(found)) from None
    except SourceError as error:
        # Of what a source raises pydantic says the class alone.
        if isinstance(error.__cause__, SettingsError):
            raise error.__cause__ from None
        raise


def unknown_variables(settings: type[ServiceSettings]) -> list[str]:
    """Variables of the environment, .env and /run/secrets that begin with a prefix of the class, and that nobody reads.

    Each is followed by the nearest name there is, as ``INFERENCE_PROT (INFERENCE_PORT?)``.
    """
    known = {name.upper() for name in settings.model_fields} | settings.others
    # Files with a suffix are certificates and the like, which settings name by their paths.
    files = [path.name for path in _SECRETS.iterdir() if not path.suffix] if _SECRETS.is_dir() else []
    given = {name.upper() for name in (*os.environ, *dotenv_values(".env", interpolate=False), *files)}
    unknown = sorted(name for name in given - known if name.startswith(settings.prefixes))
    nearest = {name: get_close_matches(name, known, n=1, cutoff=0.85) for name in unknown}
    return [f"{name} ({nearest[name][0]}?)" if nearest[name] else name for name in unknown]


def _secret_fields(settings: type[BaseSettings]) -> list[str]:
    return [name for name, field in settings.model_fields.items() if "Secret" in str(field.annotation)]
