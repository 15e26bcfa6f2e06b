"""Versions that were left for their acceptance, on record beside the run's checkpoints, so that no restart takes them.

``<run>/left/step-00001200`` holds the sha256 of the manifest and, in the next line, why. Whoever removes the file lets
the version draft again after the next start.
"""

import logging
from contextlib import suppress
from pathlib import Path

from latentforge.snapshots.snapshot import Snapshot

LEFT = "left"

logger = logging.getLogger(__name__)


def why_left(snapshot: Snapshot) -> str | None:
    """Why a version was left; None where it was not, or is another by now."""
    with suppress(OSError, UnicodeError):
        digest, _, reason = _path(snapshot.place).read_text(encoding="utf-8").partition("\n")
        if digest == snapshot.digest:
            return reason.strip()
    return None


def write_left(snapshot: Snapshot, reason: str) -> None:
    """Puts it on record; a folder that cannot be written has none, and servers go on without."""
    path = _path(snapshot.place)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{snapshot.digest}\n{reason}\n", encoding="utf-8")
    except OSError as error:
        logger.warning("%s is taken again after a restart: %s cannot be written: %s", snapshot.id, path, error)


def _path(place: Path) -> Path:
    return place.parent / LEFT / place.name
