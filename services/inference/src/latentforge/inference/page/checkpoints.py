"""The checkpoints that are published, for the page: what each is, and pinning one."""

import json
import math
from collections.abc import Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentforge.core.catalogue import PublishedCheckpoint, pin_checkpoint, published_checkpoints, unpin_run
from latentforge.core.checkpoints import UnknownCheckpointError, chosen_checkpoint
from latentforge.core.manifest import CheckpointError, FileRecord
from latentforge.inference.rest.errors import RestError
from latentforge.snapshots.registry import Registry

# Of more, the oldest are left out; the curve of a run does not need them.
_MOST_LISTED = 1000
_TEMPLATE, _TOKENIZER_CONFIG = "tokenizer/chat_template.jinja", "tokenizer/tokenizer_config.json"


class ListedCheckpoint(BaseModel):
    """One published checkpoint.

    Attributes:
        id: ``<run>/step-00001200``.
        created: ISO 8601; None where the manifest cannot be read.
        metrics: of the manifest, those that are finite.
        chat: its tokenizer has a chat template.
        served: requests that name no checkpoint are answered from it.
        loaded: it is in memory beside the one that is served.
        usable: a request may name it.
        pinned: its run is pinned to it.
        shipped: it is the fallback, in another folder, and cannot be pinned.
        problem: why it was quarantined, or what is wrong with its manifest or its run's pin.
    """

    id: str
    run: str
    step: int
    created: str | None = None
    chunk_size: int | None = None
    chat: bool = False
    metrics: dict[str, float] = {}
    served: bool = False
    loaded: bool = False
    usable: bool = False
    pinned: bool = False
    shipped: bool = False
    quarantined: bool = False
    problem: str | None = None


class CheckpointListing(BaseModel):
    """Every checkpoint, the run that published last and newest steps first.

    Attributes:
        follows: the run that is served, by setting or because it published last; None while there is none.
        problem: what the server passed over.
    """

    checkpoints: list[ListedCheckpoint]
    follows: str | None
    problem: str | None


class PinRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    checkpoint: str


class UnpinRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    run: str


class PinAnswer(BaseModel):
    """What is pinned now; ``note`` says what else has to be done for it to be served."""

    run: str
    pinned: str | None
    note: str | None


def listing(registry: Registry) -> CheckpointListing:
    """Reads the folder."""
    problems: list[str] = []
    try:
        found = published_checkpoints(registry.root, lambda error: problems.append(str(error)), followed=registry.run)
    except OSError as error:
        found, problems = [], [str(error)]
    reasons = {bad.checkpoint: bad.reason for bad in registry.quarantined}
    served = registry.current
    loaded = {snapshot.id for snapshot in registry.loaded}
    listed = [_listed(each, registry, reasons, loaded) for each in found[:_MOST_LISTED]]
    if served is not None and not any(each.served for each in listed):
        manifest = served.manifest
        listed.append(
            ListedCheckpoint(
                id=served.id,
                run=manifest.run,
                step=manifest.step,
                created=manifest.created,
                chunk_size=manifest.chunk_size,
                chat=has_template(served.place, manifest.files),
                metrics=_finite(manifest.metrics),
                served=True,
                usable=True,
                shipped=True,
            )
        )
    return CheckpointListing(
        checkpoints=listed,
        follows=registry.run or (found[0].place.parent.name if found else None),
        problem="; ".join(dict.fromkeys(problems)) or registry.problem,
    )


def pin(registry: Registry, checkpoint: str) -> PinAnswer:
    """Pins a run to a checkpoint.

    Raises:
        RestError: 404 where there is no such checkpoint, 409 where it cannot be pinned or the folder is read-only.
    """
    try:
        place = pin_checkpoint(registry.root, checkpoint)
    except UnknownCheckpointError as error:
        raise RestError(404, "checkpoint_not_found", str(error), param="checkpoint") from None
    except CheckpointError as error:
        raise RestError(409, "cannot_pin", str(error), param="checkpoint") from None
    except OSError as error:
        raise _unwritable(registry, error) from None
    run = place.parent.name
    return PinAnswer(run=run, pinned=f"{run}/{place.name}", note=_not_followed(registry, run))


def unpin(registry: Registry, run: str) -> PinAnswer:
    """Takes a run's pin away, if it has one; raises as :func:`pin`."""
    try:
        unpin_run(registry.root, run)
    except UnknownCheckpointError as error:
        raise RestError(404, "run_not_found", str(error), param="run") from None
    except OSError as error:
        raise _unwritable(registry, error) from None
    return PinAnswer(run=run, pinned=None, note=_not_followed(registry, run))


def _listed(
    published: PublishedCheckpoint, registry: Registry, reasons: Mapping[str, str], loaded: Set[str]
) -> ListedCheckpoint:
    values: dict[str, Any] = {}
    served, run = registry.current, published.place.parent.name
    is_served = served is not None and served.id == published.id
    if (manifest := published.manifest) is not None:
        values = {
            "created": manifest.created,
            "chunk_size": manifest.chunk_size,
            "chat": has_template(published.place, manifest.files),
            "metrics": _finite(manifest.metrics),
        }
    return ListedCheckpoint(
        id=published.id,
        run=run,
        step=int(published.place.name.rpartition("-")[2]),
        served=is_served,
        loaded=published.id in loaded and not is_served,
        usable=published.manifest is not None and published.id not in reasons and registry.run in (None, run),
        pinned=published.is_pinned,
        quarantined=published.id in reasons,
        problem=reasons.get(published.id) or published.problem,
        **values,
    )


def has_template(place: Path, files: Mapping[str, FileRecord]) -> bool:
    """Whether there is a template, in a file of its own or, as older tokenizers have it, in their configuration."""
    if _TEMPLATE in files:
        return True
    config = files.get(_TOKENIZER_CONFIG)
    return config is not None and _config_has_template(place / _TOKENIZER_CONFIG, config.sha256)


@lru_cache(maxsize=_MOST_LISTED)
def _config_has_template(path: Path, sha256: str) -> bool:
    """The digest makes a file that was published anew be read anew."""
    try:
        return bool(json.loads(path.read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _not_followed(registry: Registry, run: str) -> str | None:
    """Why a pin of a run changes nothing of what is served."""
    if registry.run is not None:
        follows, why = registry.run, "which CHECKPOINT_RUN names"
    else:
        try:
            chosen = chosen_checkpoint(registry.root, None, lambda _: None)
        except (CheckpointError, OSError):
            return None
        if chosen is None:
            return None
        follows, why = chosen.parent.name, "which published last"
    if follows == run:
        return None
    return f"the server follows {follows}, {why}; set CHECKPOINT_RUN={run} to serve this run"


def _unwritable(registry: Registry, error: OSError) -> RestError:
    return RestError(
        409,
        "read_only",
        f"{registry.root} cannot be written by this server ({error.strerror}); mount it writable, or pin with "
        "`inference pin` where it is",
    )
