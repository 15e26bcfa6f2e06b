"""Makes .env.example of the settings of every service and tool, and of what the compose files read.

Usage: python -m tools.env_example [--check]
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from latentforge.core.settings import ServiceSettings
from latentforge.gateway.settings import GatewaySettings
from latentforge.inference.settings import InferenceSettings
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.vllm.settings import DrafterSettings
from tools.demo.settings import ROOT, DemoSettings
from tools.gateway import GatewayChoice

FILE = ROOT / ".env.example"

HEAD = """\
# Every variable that LatentForge reads, made of the settings' own descriptions by `make env-example`.
# Nothing here has to be set: what stands behind each = is the default, and a line counts once its # is gone.
# `cp .env.example .env`, then change what you need; .env is never committed. Services and `make` read it in the folder
# that they run in, and the environment comes first. Docker Compose reads it too.
# Put a value that holds a $ between single quotes, as in VENICE_API_KEY='lit$eral': without them Docker Compose takes
# what follows the $ for a variable's name. One that holds ${ does not fit here: put it into the environment.
"""

# In the order of the file. What several services read has a section of its own.
SERVICES: dict[str, type[ServiceSettings]] = {
    "teacher-gateway": GatewaySettings,
    "trainer": TrainerSettings,
    "inference": InferenceSettings,
    "drafter in vLLM": DrafterSettings,
}
# What they read of the services' is not listed again.
TOOLS: tuple[type[ServiceSettings], ...] = (DemoSettings, GatewayChoice)

# What only the compose files read, by file.
COMPOSE: dict[str, dict[str, str]] = {
    "docker-compose.yml": {
        "RUN": "The trainer's run; unset is compose-$RECIPE, or gb10 with docker-compose.gb10.yml.",
        "GATEWAY_BIND_ADDRESS": "Address of this machine that the gateway's port is published at, an IPv6 one in "
        "brackets; 0.0.0.0 for every one, then with a key and TLS.",
        "HF_TOKEN": "Token of the Hugging Face hub, for a TEACHER_MODEL that wants one.",
        "MODELS_DIR": "Folder of this machine that the gateway has as /models, for TEACHER_MODEL=/models/NAME and "
        "TOKENIZER_PATH=/models/NAME; of a teacher elsewhere it needs only the tokenizer and config.json.",
        "IMAGE_TAG": "Tag of the images that are built.",
        "DRAFTED_MODEL": "With --profile drafted: folder in MODELS_DIR of the model that vLLM serves.",
        "DRAFT_TOKENS": "With --profile drafted or gb10-drafted: the longest draft, in tokens; the latter has 3.",
        "DRAFTED_ARGS": "With either: more arguments of vLLM's own.",
        "DRAFTED_API_KEY": "With either: key that callers of vLLM must send; unset lets everybody in.",
        "DRAFTED_BIND_ADDRESS": "With either: address that vLLM is published at; 0.0.0.0 for every one.",
        "DRAFTED_PORT": "With either: vLLM's port on this machine.",
        "PROMETHEUS_PORT": "With --profile watch: Prometheus's port on this machine.",
        "GRAFANA_PORT": "With --profile watch: the dashboard's port on this machine.",
        "REDIS_MAXMEMORY": "Redis drops the rows that were asked for least recently beyond this.",
    },
    "docker-compose.gb10.yml": {
        "VLLM_MODEL": "The teacher's folder in MODELS_DIR.",
        "VLLM_MODEL_ARGS": "More arguments of vLLM's own.",
        "VLLM_IMAGE": "Image of vLLM; the default has the version that is tested.",
        "VLLM_BIND_ADDRESS": "gb10-dual-teacher: address that vLLM is published at; give the one of the link between "
        "the machines.",
        "VLLM_MASTER_ADDR": "gb10-multinode-*: the head's address.",
        "NCCL_SOCKET_IFNAME": "gb10-multinode-*: this machine's network interface.",
        "GLOO_SOCKET_IFNAME": "gb10-multinode-*: the same, for Gloo.",
    },
}

_UNSET = "unset"
_SUBSTITUTION = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::?-([^}]*))?\}")


@dataclass(frozen=True)
class Variable:
    """One setting as one service reads it; ``default`` is as it would be written in the file, "" when unset."""

    name: str
    reader: str
    description: str
    default: str


def variables(settings: type[ServiceSettings], reader: str) -> Iterator[Variable]:
    """The environment variables of a settings class, in its order.

    Raises:
        ValueError: a field has no description.
    """
    for field_name, field in settings.model_fields.items():
        if not field.description:
            raise ValueError(f"{settings.__name__}.{field_name} has no description; give its Field one")
        yield Variable(field_name.upper(), reader, _with_choices(field), written(field.get_default()))


def written(value: Any) -> str:
    """A default as an environment variable would have it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        return str(value.relative_to(ROOT)) if value != ROOT else "."
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_choices(field: FieldInfo) -> str:
    """The description, and what may be chosen where that is a list that it does not say itself."""
    assert field.description is not None
    choices = [str(choice) for choice in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    if all(choice in field.description for choice in choices):
        return field.description
    return f"{field.description.removesuffix('.')}: {', '.join(choices)}."


def compose_defaults(path: Path) -> dict[str, str]:
    """The variables that a compose file substitutes, with the defaults that stand in it."""
    found: dict[str, str] = {}
    for name, default in _SUBSTITUTION.findall(path.read_text(encoding="utf-8")):
        # One that is made of other variables stands in the description.
        found[name] = found.get(name) or ("" if "$" in default else default)
    return found


def render() -> str:
    """The whole file."""
    read = {reader: list(variables(settings, reader)) for reader, settings in SERVICES.items()}
    by_name: dict[str, list[Variable]] = {}
    for variable in (v for listed in read.values() for v in listed):
        by_name.setdefault(variable.name, []).append(variable)
    sections = {reader: [_entry([v]) for v in listed if len(by_name[v.name]) == 1] for reader, listed in read.items()}
    sections["several services"] = [_entry(same) for same in by_name.values() if len(same) > 1]
    own = {v.name: v for settings in TOOLS for v in variables(settings, "make") if v.name not in by_name}
    sections["make"] = [_entry([variable]) for variable in own.values()]
    for file, descriptions in COMPOSE.items():
        defaults = compose_defaults(ROOT / file)
        sections[file] = [_entry([Variable(name, file, text, defaults[name])]) for name, text in descriptions.items()]
    parts = [HEAD, *(f"# --- {title} ---\n{''.join(entries)}" for title, entries in sections.items() if entries)]
    return "\n".join(parts)


def _entry(same: list[Variable]) -> str:
    """A variable with what each of its readers says of it; what all say stands once."""
    if len({variable.description for variable in same}) == 1:
        says = [same[0].description]
    else:
        says = [f"{variable.reader}: {variable.description}" for variable in same]
    if len({variable.default for variable in same}) > 1:
        says.append(f"Default: {', '.join(f'{v.default or _UNSET} in {v.reader}' for v in same)}.")
    comments = "".join(_comment(text) + "\n" for text in says)
    return f"{comments}#{same[0].name}={same[0].default}\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def main(check: bool) -> int:
    text = render()
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == text:
        sys.stdout.write("env-example: up to date\n")
    elif check:
        sys.stderr.write("env-example: .env.example is not as the settings say; run: make env-example\n")
        return 1
    else:
        FILE.write_text(text, encoding="utf-8")
        sys.stdout.write("env-example: made .env.example\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
