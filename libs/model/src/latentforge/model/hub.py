"""Where a published student is: a checkpoint's folder, a run's, or a model of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from latentforge.core.checkpoints import chosen_checkpoint
from latentforge.core.manifest import MANIFEST, CheckpointError
from latentforge.core.publishing import PARTS

# Of a repository nothing else is downloaded: it may hold whatever its owner likes.
_WANTED = [MANIFEST, "README.md", *(f"{part}/*" for part in PARTS)]


def local_checkpoint(folder: Path) -> Path:
    """A checkpoint's folder, or the pinned, else the newest one of a run's.

    Raises:
        CheckpointError: there is no checkpoint in the folder.
        OSError: it cannot be read.
    """
    if (folder / MANIFEST).is_file():
        return folder
    whole = folder.absolute()
    chosen = chosen_checkpoint(whole.parent, whole.name)
    if chosen is None:
        raise CheckpointError(f"{folder} holds no checkpoint: neither {MANIFEST} nor step-…/ with one")
    return chosen


def download(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    wanted: Sequence[str] = _WANTED,
) -> Path:
    """The folder of a model of the hub in this machine's cache, downloaded where it is not there yet.

    Args:
        model_id: ``owner/name``.
        revision: a branch, a tag or a commit; None takes the newest commit.
        token, cache_dir, force_download, local_files_only: as huggingface_hub takes them.
        wanted: patterns of the files; by default those of a student.

    Raises:
        CheckpointError: there is no such model, it is not a student, or the hub does not answer.
    """
    try:
        folder = snapshot_download(
            model_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=list(wanted),
        )
    except HFValidationError:
        raise CheckpointError(
            f"{model_id} is neither a folder that is there nor a model of the hub, owner/name"
        ) from None
    # Everything that the hub and the way to it can do wrong is one of these.
    except (OSError, ValueError) as error:
        where = f" at {revision}" if revision else ""
        raise CheckpointError(f"{model_id}{where} is no folder, and the hub does not give it: {error}") from error
    return Path(folder)
