"""Where a causal LM's files are, what is in them, and what names exactly these weights."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from latentforge.core.files import sha256_of
from latentforge.gateway.backends.base import BackendError

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIG, _GENERATION_CONFIG = "config.json", "generation_config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightFiles:
    """A folder with config.json, tokenizer.json and safetensors.

    ``commit`` is the hub's name of exactly these files, empty for a folder that is no snapshot of the hub's.
    """

    folder: Path
    name: str
    commit: str = ""


@dataclass(frozen=True)
class ReadWeights:
    """What the files held when they were read: what happens to them afterwards changes nothing here.

    Attributes:
        revision: changes when a weight or the configuration does.
        configuration: config.json and, where there is one, generation_config.json.
        parameters: in memory of their own, not mapped from a file: one that is written to would change them under way,
            and one that is cut short would end the process.
    """

    revision: str
    configuration: Mapping[str, bytes]
    parameters: dict[str, Tensor]


def find_weights(model: str, setting: str, *, hub: bool) -> WeightFiles:
    """Finds a local folder, or downloads a hub model unless it is there already.

    Args:
        model: a folder or a hub id.
        setting: the environment variable that gave it, for errors.
        hub: whether a hub id is allowed.

    Raises:
        BackendError: there are no such files, with what to set.
    """
    folder = Path(model)
    if folder.is_dir():
        _check_files(folder, setting)
        return WeightFiles(folder, folder.resolve().name)
    if not hub:
        raise BackendError(f"{setting}={model} is no folder; give the one with the teacher's config.json and weights")
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise BackendError(f"{setting}={model} is no folder; give one with config.json and *.safetensors, or a hub id")
    try:
        folder = Path(snapshot_download(model, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(f"{setting}={model} is no folder here and unavailable on the hub: {reason}") from None
    _check_files(folder, setting)
    return WeightFiles(folder, model, folder.name if _COMMIT.fullmatch(folder.name) else "")


def read_weights(files: WeightFiles) -> ReadWeights:
    """Reads each file once: what is hashed is what is loaded.

    Raises:
        BackendError: a file that the index names is missing.
        OSError, ValueError, KeyError, safetensors.SafetensorError: one cannot be read.
    """
    folder = files.folder
    names = (_CONFIG, _GENERATION_CONFIG)
    configuration = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    loaded = _loaded_files(folder)
    parameters: dict[str, Tensor] = {}
    hashes = {_CONFIG: hashlib.sha256(configuration[_CONFIG]).digest()}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in loaded:
            data = path.read_bytes()
            hashes[path.name] = hashlib.sha256(data).digest()
            parameters |= safetensors.torch.load(data)
        elif not files.commit:
            hashes[path.name] = bytes.fromhex(sha256_of(path))
    return ReadWeights(files.commit or _revision(hashes), configuration, parameters)


def revision_of(files: WeightFiles) -> str:
    """The revision of weights that somebody else loads."""
    paths = [files.folder / _CONFIG, *sorted(files.folder.glob("*.safetensors"))]
    return files.commit or _revision({path.name: bytes.fromhex(sha256_of(path)) for path in paths})


def stamp_of(files: WeightFiles) -> list[tuple[str, int, int, int]]:
    """What is another once a file was replaced or written to, without reading any."""
    paths = [files.folder / _CONFIG, *sorted(files.folder.glob("*.safetensors"))]
    stats = [(path.name, path.stat()) for path in paths]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _check_files(folder: Path, setting: str) -> None:
    there = {_CONFIG: (folder / _CONFIG).is_file(), "*.safetensors": any(folder.glob("*.safetensors"))}
    if missing := [name for name, found in there.items() if not found]:
        raise BackendError(f"{setting}={folder} has no {' and no '.join(missing)}; give a model's folder")


def _loaded_files(folder: Path) -> set[str]:
    """The names of the files that hold the parameters; others may lie there, as the same weights in another form."""
    if (folder / _SINGLE).is_file():
        return {_SINGLE}
    if not (folder / _INDEX).is_file():
        raise BackendError(f"{folder} has neither {_SINGLE} nor {_INDEX}; give a model's folder")
    names = set(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise BackendError(f"{folder} has no {', '.join(missing)}, which {_INDEX} names; copy the model again")
    return names


def _revision(hashes: Mapping[str, bytes]) -> str:
    """16 hex digits over the configuration and every weight file: either decides what the rows are."""
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(name.encode())
        digest.update(sha256)
    return digest.hexdigest()[:16]
