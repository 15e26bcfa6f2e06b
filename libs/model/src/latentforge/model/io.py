"""Modules on disk: config.json and model.safetensors, no pickle.

Both files are read into memory first. That they fit is known from the names and shapes in them, before any memory is
taken for what the config says.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from latentforge.core.errors import describe_errors
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig, StudentConfig, TokenLevelConfig
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_KIND = "kind"

_KINDS = {Autoencoder: "autoencoder", Student: "student", TokenLevelModel: "token-level"}
# What a config says that no tensor has as one of its sizes.
_NO_SIZES = {"pad_id", "eos_id", "max_chunks", "max_tokens"}
_DEPTHS = {"num_layers", "num_blocks", "energy_blocks"}
# They become float32 without loss.
_WIDENED = {torch.float16, torch.bfloat16, torch.float32}

_C = TypeVar("_C", bound=BaseModel)
_M = TypeVar("_M", Autoencoder, Student, TokenLevelModel)


class ModuleFiles(NamedTuple):
    """What a module's two files hold, and the folder that errors name."""

    folder: Path
    config: bytes
    weights: bytes


def save_pretrained(module: Autoencoder | Student | TokenLevelModel, directory: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into ``directory``, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {_KIND: _KINDS[type(module)], **module.config.model_dump()}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, directory / WEIGHTS_FILE)


def read_module_files(directory: Path) -> ModuleFiles:
    """Reads the two files that :func:`save_pretrained` wrote.

    Raises:
        ValueError: one cannot be read; the message names it.
    """
    return ModuleFiles(directory, _read(directory / CONFIG_FILE), _read(directory / WEIGHTS_FILE))


def load_autoencoder(directory: Path) -> Autoencoder:
    """As :func:`autoencoder_from`, from a folder."""
    return autoencoder_from(read_module_files(directory))


def load_student(directory: Path) -> Student:
    """As :func:`autoencoder_from`, for a student in a folder."""
    return student_from(read_module_files(directory))


def load_token_level(directory: Path) -> TokenLevelModel:
    """As :func:`autoencoder_from`, for a token-level student in a folder."""
    return _made(TokenLevelModel, TokenLevelConfig, read_module_files(directory))


def autoencoder_from(files: ModuleFiles) -> Autoencoder:
    """A module from its files, on the CPU, in evaluation mode.

    Raises:
        ValueError: a file is torn, of another kind, or does not fit the other; the message names it.
    """
    return _made(Autoencoder, AutoencoderConfig, files)


def student_from(files: ModuleFiles) -> Student:
    """As :func:`autoencoder_from`, for a student."""
    module = _made(Student, StudentConfig, files)
    if module.chunk_decoder is not None and not module.chunk_decoder.output.has_sound_ids():
        raise ValueError(
            f"{files.folder / WEIGHTS_FILE}: chunk_decoder.output.ids are not ascending ids of the "
            f"{module.config.vocab_size} that the vocabulary has; the file is damaged, take another checkpoint"
        )
    return module


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error


def _made(module_class: type[_M], config_class: type[_C], files: ModuleFiles) -> _M:
    config = _config(files, _KINDS[module_class], config_class)
    path = files.folder / WEIGHTS_FILE
    try:
        weights = load(files.weights)
    # The last two: of what is well-formed but of no type that torch knows.
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    _check_sizes(files.folder / CONFIG_FILE, config, weights)
    make: Any = module_class
    with torch.device("meta"):
        _check_fit(path, make(config), weights)
    module: _M = make(config)
    module.load_state_dict(weights, strict=True)
    return module.eval()


def _config(files: ModuleFiles, kind: str, config_class: type[_C]) -> _C:
    path = files.folder / CONFIG_FILE
    try:
        values: Any = json.loads(files.config)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict) or values.get(_KIND) != kind:
        found = values.get(_KIND) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: {_KIND} is {found!r}, but {kind!r} is wanted here")
    try:
        return config_class.model_validate({name: value for name, value in values.items() if name != _KIND})
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(describe_errors(error))}") from error


def _check_sizes(path: Path, config: BaseModel, weights: dict[str, Tensor]) -> None:
    """Refuses sizes that no tensor of the file can have: already a module without memory would take for ever."""
    for name, size in _sizes(config):
        is_depth = name.rpartition(".")[2] in _DEPTHS
        most = len(weights) if is_depth else sum(tensor.numel() for tensor in weights.values())
        if size > most:
            what = "tensors" if is_depth else "numbers"
            raise ValueError(
                f"{path}: {name} is {size}, but {WEIGHTS_FILE} beside it has only {most} {what}; "
                "the two are not of one model"
            )


def _sizes(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in config:
        if isinstance(value, BaseModel):
            yield from _sizes(value, f"{prefix}{name}.")
        elif type(value) is int and name not in _NO_SIZES:
            yield prefix + name, value


def _check_fit(path: Path, empty: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = empty.state_dict()
    problem = None
    if missing := sorted(wanted.keys() - weights.keys()):
        problem = f"{missing[0]} is missing"
    elif strange := sorted(weights.keys() - wanted.keys()):
        problem = f"{strange[0]!r} is no part of the model"
    else:
        for name, tensor in wanted.items():
            found = weights[name]
            if found.shape != tensor.shape:
                problem = f"{name} has the shape {list(found.shape)}, not {list(tensor.shape)}"
            elif found.dtype != tensor.dtype and not {found.dtype, tensor.dtype} <= _WIDENED:
                problem = f"{name} is {found.dtype}, not {tensor.dtype}"
            if problem:
                break
    if problem:
        raise ValueError(f"{path}: the weights do not fit {CONFIG_FILE} beside them: {problem}")
