"""Checkpoints to swap in: copies of one, each published as a later step."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.manifest import MANIFEST, ManifestDraft, step_folder
from latentforge.core.publishing import manifest_of

RUN = "swapped"
_KEPT = 5


def publish_copies(source: Path, root: Path, count: int) -> Iterator[Path]:
    """Publishes ``count`` copies of a checkpoint as the next steps of a run, one for each time that it is advanced.

    Of a run's copies the newest few stay, as a trainer may keep them too.
    """
    manifest = read_manifest(source)
    draft = ManifestDraft.model_validate(manifest.model_dump(include=set(ManifestDraft.model_fields)))
    folder = root / RUN
    folder.mkdir(parents=True, exist_ok=True)
    published = list_checkpoints(folder)
    first = 1 + (read_manifest(published[-1]).step if published else 0)
    for step in range(first, first + count):
        place = folder / step_folder(step)
        temporary = folder / f".{place.name}"
        for name in manifest.files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = manifest_of(temporary, RUN, step, created, draft)
        (temporary / MANIFEST).write_text(content, encoding="utf-8")
        temporary.rename(place)
        for old in list_checkpoints(folder)[:-_KEPT]:
            shutil.rmtree(old)
        yield place
