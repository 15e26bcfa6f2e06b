"""Which checkpoints of a run are kept: the newest, the best, the pinned one, and those that servers hold on lease."""

import logging
import math
from pathlib import Path

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.files import discard
from latentforge.core.leases import leased
from latentforge.core.manifest import CheckpointError
from latentforge.core.pins import read_pin

logger = logging.getLogger(__name__)


def prune_checkpoints(run_folder: Path, keep: int, metric: str = "held_out_ce") -> list[str]:
    """Removes a run's older checkpoints, each in one rename; gives the names of those that are gone.

    Kept are the newest ``keep``, the one whose manifest says the smallest ``metric``, the one that the run is pinned
    to, and every one that a server has on lease. Where the pin cannot be read nothing is removed.

    Args:
        run_folder: ``<root>/<run>``.
        keep: how many of the newest, from 1.
        metric: of the manifests; smaller is better. One whose manifest cannot be read is no candidate.

    Raises:
        OSError: the disk refuses.
    """
    places = list_checkpoints(run_folder)
    try:
        pinned = read_pin(run_folder)
    except CheckpointError as error:
        logger.warning("no checkpoint is removed: %s", error)
        return []
    kept = {place.name for place in places[-keep:]} | leased(run_folder)
    if pinned is not None:
        kept.add(pinned)
    if best := min(places, key=lambda place: _figure(place, metric), default=None):
        kept.add(best.name)
    gone = [place for place in places if place.name not in kept]
    for place in gone:
        discard(place)
    return [place.name for place in gone]


def _figure(place: Path, metric: str) -> float:
    try:
        return read_manifest(place).metrics.get(metric, math.inf)
    except CheckpointError:
        return math.inf
