"""How a folder was made, for its manifest."""

from datetime import UTC, datetime
from importlib.metadata import version

from latentforge.trainer.kept.manifest import KeptBy


def kept_by(command: str) -> KeptBy:
    """By this command line, this version, now."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return KeptBy(command=command, version=version("latentforge-trainer"), created=created)
