"""Where a causal LM's files are, and what names exactly these weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from latentforge.core.files import sha256_of
from latentforge.gateway.backends.base import BackendError

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIG = "config.json"


@dataclass(frozen=True)
class WeightFiles:
    """A folder with config.json, tokenizer.json and safetensors.

    ``commit`` is the hub's name of exactly these files, empty for a folder that is no snapshot of the hub's.
    """

    folder: Path
    name: str
    commit: str = ""


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


def revision_of(files: WeightFiles) -> str:
    """The revision of weights that somebody else loads."""
    paths = [files.folder / CONFIG, *sorted(files.folder.glob("*.safetensors"))]
    return files.commit or revision_of_hashes({path.name: bytes.fromhex(sha256_of(path)) for path in paths})


def stamp_of(files: WeightFiles) -> list[tuple[str, int, int, int]]:
    """What is another once a file was replaced or written to, without reading any."""
    paths = [files.folder / CONFIG, *sorted(files.folder.glob("*.safetensors"))]
    stats = [(path.name, path.stat()) for path in paths]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def revision_of_hashes(hashes: Mapping[str, bytes]) -> str:
    """16 hex digits over the configuration and every weight file: either decides what the rows are."""
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(name.encode())
        digest.update(sha256)
    return digest.hexdigest()[:16]


def _check_files(folder: Path, setting: str) -> None:
    there = {CONFIG: (folder / CONFIG).is_file(), "*.safetensors": any(folder.glob("*.safetensors"))}
    if missing := [name for name, found in there.items() if not found]:
        raise BackendError(f"{setting}={folder} has no {' and no '.join(missing)}; give a model's folder")
