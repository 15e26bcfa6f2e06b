"""Where a causal LM's files are and what names exactly these weights."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from latentforge.core.files import sha256_of
from latentforge.gateway.backends.base import BackendError

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class WeightFiles:
    """A folder with config.json, tokenizer.json and safetensors; ``revision`` changes when the weights do."""

    folder: Path
    name: str
    revision: str


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
        return WeightFiles(folder, folder.resolve().name, _revision_of(folder, setting))
    if not hub:
        raise BackendError(f"{setting}={model} is no folder; give the one with the teacher's config.json and weights")
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise BackendError(f"{setting}={model} is no folder; give one with config.json and *.safetensors, or a hub id")
    try:
        folder = Path(snapshot_download(model, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(f"{setting}={model} is no folder here and unavailable on the hub: {reason}") from None
    if not _COMMIT.fullmatch(folder.name):
        return WeightFiles(folder, model, _revision_of(folder, setting))
    return WeightFiles(folder, model, folder.name)


def _revision_of(folder: Path, setting: str) -> str:
    """16 hex digits over the configuration and every weight file: either decides what the rows are."""
    files = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    missing = [name for name, there in (("config.json", config.is_file()), ("*.safetensors", files)) if not there]
    if missing:
        raise BackendError(f"{setting}={folder} has no {' and no '.join(missing)}; give a model's folder")
    digest = hashlib.sha256()
    for path in [config, *files]:
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()[:16]
