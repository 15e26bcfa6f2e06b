"""What vLLM serves and how, as far as a drafter must know; whatever it does not know is refused before any work."""

from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from latentforge.core.errors import shortened
from latentforge.text.errors import TextError
from latentforge.text.fingerprint import tokenizer_fingerprint
from latentforge.text.tokenizer_files import TOKENIZER

# Releases whose interface of a custom drafter was read and tried (tests/vllm). It is experimental: no other is taken.
KNOWN_RELEASES = ((0, 32),)
# Beyond this a pass of the teacher costs more than any draft brings.
MOST_TOKENS = 32
# Of the speculative configuration: what is meant for this drafter, and what vLLM fills in by itself.
_READ = {"method", "model", "num_speculative_tokens"}
_FILLED_IN = {
    "draft_model_config",
    "draft_parallel_config",
    "draft_tensor_parallel_size",
    "prompt_lookup_max",
    "prompt_lookup_min",
    "target_model_config",
    "target_parallel_config",
}


class EngineError(ValueError):
    """This vLLM, or how it was started, is none that the drafter knows; the message says what to change."""


@dataclass(frozen=True)
class DraftedTeacher:
    """The teacher behind vLLM, as a drafter sees it.

    Attributes:
        num_draft_tokens: the longest draft that vLLM verifies.
        max_tokens: the longest text, in tokens.
        vocab_size: ids that the engine takes; a larger one would end it.
        fingerprint: of its tokenizer.
        tokenizer: where that is, for errors.
        device: type of the device it computes on, as torch calls it.
    """

    num_draft_tokens: int
    max_tokens: int
    vocab_size: int
    fingerprint: str
    tokenizer: str
    device: str


def read_drafted_teacher(config: Any) -> DraftedTeacher:
    """Reads a ``VllmConfig``.

    Raises:
        EngineError: vLLM is of another release, or does what the drafter was not tried with.
    """
    check_release(str(import_module("vllm").__version__))
    _check_runner(config)
    speculative, model = config.speculative_config, config.model_config
    _check_speculative(speculative)
    tokenizer, revision = str(model.tokenizer), getattr(model, "tokenizer_revision", None)
    return DraftedTeacher(
        num_draft_tokens=int(speculative.num_speculative_tokens),
        max_tokens=int(model.max_model_len),
        vocab_size=int(model.get_vocab_size()),
        fingerprint=_fingerprint(tokenizer, revision),
        tokenizer=tokenizer,
        device=str(config.device_config.device_type),
    )


def check_release(version: str) -> None:
    """Refuses releases of vLLM whose interface nobody has read."""
    release = tuple(int(part) if part.isdecimal() else -1 for part in version.split(".")[:2])
    if release not in KNOWN_RELEASES:
        known = " or ".join(f"{major}.{minor}" for major, minor in KNOWN_RELEASES)
        raise EngineError(
            f"vLLM {version} is not known to this drafter, which was tried with {known}: install that, or take another "
            "method in --speculative-config"
        )


def _check_runner(config: Any) -> None:
    if config.use_v2_model_runner:
        raise EngineError(
            "vLLM's V2 model runner takes no drafter of one's own: unset VLLM_USE_V2_MODEL_RUNNER, or set it to 0"
        )
    if config.scheduler_config.async_scheduling:
        raise EngineError("--async-scheduling hides the newest tokens from the drafter; start vLLM without it")
    parallel = config.parallel_config
    for name in ("world_size", "data_parallel_size"):
        if (size := getattr(parallel, name)) != 1:
            raise EngineError(
                f"{name} is {size}, and the drafter knows one worker a server: start vLLM without "
                "--tensor-parallel-size, --pipeline-parallel-size and --data-parallel-size"
            )
    model = config.model_config
    if model.runner_type != "generate" or model.is_encoder_decoder:
        raise EngineError(f"{model.model} does not continue a text token by token, so that nothing can be drafted")
    if model.enable_prompt_embeds:
        raise EngineError("--enable-prompt-embeds lets prompts have no tokens, which a drafter reads; leave it out")


def _check_speculative(speculative: Any) -> None:
    if not 1 <= speculative.num_speculative_tokens <= MOST_TOKENS:
        raise EngineError(
            f"num_speculative_tokens of --speculative-config is {speculative.num_speculative_tokens}; "
            f"use 1 to {MOST_TOKENS}"
        )
    for field in fields(speculative) if is_dataclass(speculative) else ():
        if field.name in _READ | _FILLED_IN or not field.init:
            continue
        default = _default_of(field)
        if (value := getattr(speculative, field.name)) != default:
            raise EngineError(
                f"{field.name} of --speculative-config is {shortened(str(value))}, which the drafter does not know; "
                "leave it out"
            )


def _default_of(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    # pydantic's, where the default stands in its Field.
    return getattr(field.default, "default", field.default)


def _fingerprint(tokenizer: str, revision: str | None) -> str:
    folder = Path(tokenizer)
    try:
        if not folder.is_dir():
            # vLLM has fetched it already, so that this finds it on disk.
            folder = Path(hf_hub_download(tokenizer, TOKENIZER, revision=revision)).parent
        return tokenizer_fingerprint(folder)
    except (TextError, OSError, ValueError) as error:
        raise EngineError(
            f"{tokenizer}: its tokenizer cannot be compared with the student's: {error}; serve a model whose folder "
            f"has a {TOKENIZER}, or name one with --tokenizer"
        ) from None
