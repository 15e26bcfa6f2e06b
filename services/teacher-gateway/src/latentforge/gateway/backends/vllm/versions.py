"""Which vLLM was tested, and which give wrong rows or die of scoring."""

import logging
import re
from dataclasses import dataclass

from latentforge.gateway.backends.base import BackendError, FailureKind
from latentforge.gateway.backends.model_folder import ModelConfig

logger = logging.getLogger(__name__)

# What tests/vllm runs, and the image of docker-compose.gb10.yml.
TESTED_VERSION = "0.32.0"


@dataclass(frozen=True)
class _Bad:
    """Releases that are refused: from ``first`` to before ``end``, as (major, minor)."""

    first: tuple[int, int]
    end: tuple[int, int]
    why: str
    linear_attention_only: bool = False


_BAD = (
    _Bad((0, 0), (0, 11), "gives no token ids with its answers, so rows cannot be checked"),
    _Bad(
        (0, 29),
        (0, 30),
        "dies of long prompts from several callers with a model of linear attention, as Qwen3-Next (its issue 57562)",
        linear_attention_only=True,
    ),
)


def check_version(version: str, config: ModelConfig, setting: str) -> None:
    """Says once where a version is not the tested one; an unknown one, behind a proxy or built from source, is taken.

    Args:
        version: as the server gives it, such as 0.32.0 or 0.27.2rc0; empty if it does not.
        config: of the model that it serves.
        setting: the environment variable that leads to this vLLM, for errors.

    Raises:
        BackendError: it is known to be bad, and why.
    """
    match = re.match(r"(\d+)\.(\d+)(?!\d)(?!\.?dev)", version)
    if match is None:
        return
    release = int(match[1]), int(match[2])
    for bad in _BAD:
        if bad.first <= release < bad.end and (config.linear_attention or not bad.linear_attention_only):
            raise BackendError(
                f"vLLM {version} at {setting} {bad.why}; serve the teacher with vLLM {TESTED_VERSION}",
                FailureKind.MISCONFIGURED,
            )
    if version.partition("+")[0] != TESTED_VERSION:
        logger.warning("vLLM %s at %s was not tested with this gateway; %s was", version, setting, TESTED_VERSION)
