"""What every program that asks a gateway is told about it, besides where it is."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from latentforge.core.settings import ServiceSettings

# What gRPC's metadata can carry.
_PRINTABLE = re.compile(r"[!-~]+")


def _printable(value: SecretStr) -> SecretStr:
    if not _PRINTABLE.fullmatch(value.get_secret_value()):
        raise ValueError("use printable ASCII without spaces, which is all that metadata can carry")
    return value


GatewayKey = Annotated[SecretStr, AfterValidator(_printable)]


class GatewayAccess(ServiceSettings):
    """Base of the settings of programs that ask a gateway."""

    gateway_api_key: GatewayKey | None = Field(None, description="The gateway's key, if it has one.")
    gateway_tls_ca: Path | None = Field(
        None, description="PEM file of the root certificate that signed a TLS gateway's; unset talks without TLS."
    )
