"""Publishing: a checkpoint becomes visible whole, in one rename, or not at all."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentforge.core.checkpoint_files import file_names, read_manifest, verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.files import replacing, sha256_of
from latentforge.core.manifest import MANIFEST, CheckpointError, FileRecord, Manifest, ManifestDraft, step_folder

PARTS = ("autoencoder", "student", "tokenizer")
# Smaller ones are not worth a look at another checkpoint.
_SHARED_FROM = 2**16
_FIRST = ("format_version", "run", "step", "created")


def publish_checkpoint(root: Path, run: str, step: int, draft: ManifestDraft, write: Callable[[Path], None]) -> Path:
    """Writes one checkpoint and makes it visible in one rename.

    Args:
        root: the checkpoints folder.
        run: the run's name.
        step: the student's optimizer step.
        draft: what the manifest says besides the files.
        write: gets an empty folder and puts autoencoder/, student/ and tokenizer/ into it.

    Returns:
        The checkpoint's folder. One that is already there whole is kept as it is.

    Raises:
        CheckpointError: ``write`` left a part out, or something else stands at the place.
    """
    place = root / run / step_folder(step)
    if place.exists():
        verify_checkpoint(place)
        return place
    # Whoever looks for checkpoints passes over the temporary name, and so never sees one without its manifest.
    with replacing(place, keep=True) as temporary:
        temporary.mkdir()
        write(temporary)
        missing = [part for part in PARTS if not (temporary / part).is_dir()]
        if missing:
            raise CheckpointError(f"{place}: nothing was written for {', '.join(missing)}")
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = manifest_of(temporary, run, step, created, draft)
        for name in file_names(temporary):
            # safetensors writes 0600; the server may run as somebody else.
            (temporary / name).chmod(0o644)
        _share(temporary, place.parent, json.loads(content)["files"])
        (temporary / MANIFEST).write_text(content, encoding="utf-8")
    return place


def _share(folder: Path, run_folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Makes files that the run's newest checkpoint has too, as an autoencoder's, one file with two names.

    The other one is read again before: a damaged file is not taken over. Where the file system has no links, or no
    more of them, the copy stays.
    """
    # Whatever is wrong with the other checkpoint, this one is whole.
    with suppress(CheckpointError, OSError):
        newest = list_checkpoints(run_folder)[-1:]
        for name, record in read_manifest(newest[0]).files.items() if newest else ():
            same = files.get(name) == record.model_dump() and record.size >= _SHARED_FROM
            if same and sha256_of(newest[0] / name) == record.sha256:
                link = folder / f".{Path(name).name}"
                os.link(newest[0] / name, link)
                link.replace(folder / name)


def manifest_of(folder: Path, run: str, step: int, created: str, draft: ManifestDraft) -> str:
    """What the manifest of a folder says whose other files are all there."""
    files = {name: folder / name for name in file_names(folder) if name != MANIFEST}
    records = {name: FileRecord(size=p.stat().st_size, sha256=sha256_of(p)) for name, p in files.items()}
    manifest = Manifest(run=run, step=step, created=created, files=records, **dict(draft))
    absent = {name for name in ("samples", "ema") if not getattr(draft, name)}
    values = manifest.model_dump(mode="json", exclude=absent)
    # A line for each field, what a reader looks for first: the numbers of a golden text would fill screens.
    lines = [f" {json.dumps(name)}: {json.dumps(values[name])}" for name in dict.fromkeys((*_FIRST, *values))]
    return "{\n" + ",\n".join(lines) + "\n}\n"
