"""What is in a causal LM's files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from latentforge.core.files import sha256_of
from latentforge.gateway.backends.base import BackendError
from latentforge.gateway.backends.weight_files import CONFIG, WeightFiles, revision_of_hashes

_GENERATION_CONFIG = "generation_config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


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


def read_weights(files: WeightFiles) -> ReadWeights:
    """Reads each file once: what is hashed is what is loaded.

    Raises:
        BackendError: a file that the index names is missing.
        OSError, ValueError, KeyError, safetensors.SafetensorError: one cannot be read.
    """
    folder = files.folder
    names = (CONFIG, _GENERATION_CONFIG)
    configuration = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    loaded = _loaded_files(folder)
    parameters: dict[str, Tensor] = {}
    hashes = {CONFIG: hashlib.sha256(configuration[CONFIG]).digest()}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in loaded:
            data = path.read_bytes()
            hashes[path.name] = hashlib.sha256(data).digest()
            parameters |= safetensors.torch.load(data)
        elif not files.commit:
            hashes[path.name] = bytes.fromhex(sha256_of(path))
    return ReadWeights(files.commit or revision_of_hashes(hashes), configuration, parameters)


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
