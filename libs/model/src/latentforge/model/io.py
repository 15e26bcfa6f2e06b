"""Modules on disk: config.json and model.safetensors, no pickle."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latentforge.core.errors import describe_errors
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, StudentConfig, TokenLevelConfig
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_KIND = "kind"

_KINDS = {Autoencoder: "autoencoder", Student: "student", TokenLevelModel: "token-level"}

_C = TypeVar("_C", bound=BaseModel)


def save_pretrained(module: Autoencoder | Student | TokenLevelModel, directory: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into ``directory``, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {_KIND: _KINDS[type(module)], **module.config.model_dump()}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, directory / WEIGHTS_FILE)


def load_autoencoder(directory: Path) -> Autoencoder:
    """Reads what :func:`save_pretrained` wrote, on the CPU, in evaluation mode.

    Raises:
        ValueError: a file is missing, torn, of another kind, or does not fit its config; the message names the file.
    """
    module = Autoencoder(_read_config(directory, "autoencoder", AutoencoderConfig))
    _load_weights(module, directory)
    return module.eval()


def load_student(directory: Path) -> Student:
    """As :func:`load_autoencoder`, for a student."""
    module = Student(_read_config(directory, "student", StudentConfig))
    _load_weights(module, directory)
    if module.chunk_decoder is not None and not module.chunk_decoder.output.has_sound_ids():
        raise ValueError(
            f"{directory / WEIGHTS_FILE}: chunk_decoder.output.ids are not ascending ids of the "
            f"{module.config.vocab_size} that the vocabulary has; the file is damaged, take another checkpoint"
        )
    return module.eval()


def load_token_level(directory: Path) -> TokenLevelModel:
    """As :func:`load_autoencoder`, for a token-level student."""
    module = TokenLevelModel(_read_config(directory, "token-level", TokenLevelConfig))
    _load_weights(module, directory)
    return module.eval()


def _read_config(directory: Path, kind: str, config_class: type[_C]) -> _C:
    path = directory / CONFIG_FILE
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict) or values.get(_KIND) != kind:
        found = values.get(_KIND) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: {_KIND} is {found!r}, but {kind!r} is wanted here")
    try:
        return config_class.model_validate({name: value for name, value in values.items() if name != _KIND})
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(describe_errors(error))}") from error


def _load_weights(module: torch.nn.Module, directory: Path) -> None:
    path = directory / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit {CONFIG_FILE} beside them: {error}") from error
