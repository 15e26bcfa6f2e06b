"""Checkpoints on the shared volume: published whole or not at all, verified before anybody loads one.

A checkpoint is ``<root>/<run>/step-00001200/`` with autoencoder/, student/, tokenizer/ and, written last,
manifest.json.
"""

import codecs
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.core.files import replacing, sha256_of

MANIFEST = "manifest.json"
PINNED = "pinned"
PARTS = ("autoencoder", "student", "tokenizer")
_STEP_FOLDER = re.compile(r"step-(\d+)")
_LONGEST_PIN = 1024
_HOW_TO_PIN = "write a folder's name, like step-00001200, in UTF-8, or delete the file"

logger = logging.getLogger(__name__)

OnError = Callable[[OSError], object]


class CheckpointError(ValueError):
    """A checkpoint that must not be loaded, and why."""


class TeacherId(BaseModel):
    """Which teacher a student learned from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    model: str
    revision: str


class FileRecord(BaseModel):
    """Size in bytes and sha256 (hex) of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Golden(BaseModel):
    """A greedy continuation that the publisher computed; whoever loads the checkpoint must get the same ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    prompt_ids: list[int]
    token_ids: list[int]


class Manifest(BaseModel):
    """The commit record of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Raised whenever configs or tensors change in name or meaning: an older checkpoint is refused in plain words then,
    # where it would fail on some field or, worse, give other logits.
    format_version: Literal[4] = 4
    run: str
    step: int = Field(ge=0)
    chunk_size: int = Field(ge=1)
    latent_size: int = Field(ge=1)
    tokenizer_fingerprint: str
    # What every sequence begins with that the student learnt from, and so every prompt.
    bos_id: int | None = None
    # What ends an assistant's answer besides the student's own end of text.
    end_ids: tuple[int, ...] = ()
    teacher: TeacherId
    created: str
    metrics: dict[str, float]
    golden: Golden
    files: dict[str, FileRecord]

    @property
    def id(self) -> str:
        """What answers call the checkpoint: ``<run>/step-00001200``."""
        return f"{self.run}/{step_folder(self.step)}"


class ManifestDraft(BaseModel):
    """What a publisher knows of a checkpoint; files, run, step and time are filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk_size: int
    latent_size: int
    tokenizer_fingerprint: str
    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    teacher: TeacherId
    metrics: dict[str, float]
    golden: Golden


def _tell(error: OSError) -> None:
    logger.warning("passed over: %s", error)


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


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
        files = {p.relative_to(temporary).as_posix(): p for p in sorted(temporary.rglob("*")) if p.is_file()}
        manifest = Manifest(
            run=run,
            step=step,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            files={name: FileRecord(size=p.stat().st_size, sha256=sha256_of(p)) for name, p in files.items()},
            **draft.model_dump(),
        )
        for path in files.values():
            # safetensors writes 0600; the server may run as somebody else.
            path.chmod(0o644)
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return place


def read_manifest(place: Path, *, anywhere: bool = False) -> Manifest:
    """A checkpoint's manifest.

    Args:
        place: the checkpoint's folder.
        anywhere: it may have any name, as copies and downloads have.

    Raises:
        CheckpointError: there is none, it is unreadable, or it belongs to another folder.
    """
    path = place / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{place} has no {MANIFEST}: it is not finished, or not a checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        for wrong in error.errors():
            if wrong["loc"] == ("format_version",):
                raise CheckpointError(
                    f"{path}: format_version is {wrong['input']!r}, but this version reads only "
                    f"{Manifest.model_fields['format_version'].default}; train and publish the student anew"
                ) from None
        raise CheckpointError(
            f"{path} is not a manifest of this version: {'; '.join(describe_errors(error))}; publish it anew"
        ) from None
    if not anywhere and place.name != step_folder(manifest.step):
        raise CheckpointError(f"{path} says step {manifest.step}, which belongs in {step_folder(manifest.step)}/")
    return manifest


def verify_checkpoint(place: Path) -> Manifest:
    """Reads the manifest and checks size and sha256 of every file that it names.

    Raises:
        CheckpointError: something is missing, added, or not what was published.
    """
    manifest = read_manifest(place)
    present = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} - {MANIFEST}
    if missing := sorted(set(manifest.files) - present):
        raise CheckpointError(f"{place}: {missing[0]} is missing")
    if strange := sorted(present - set(manifest.files)):
        raise CheckpointError(f"{place}: {strange[0]} is not in its manifest")
    for name in manifest.files:
        verify_file(place, manifest, name)
    return manifest


def verify_file(place: Path, manifest: Manifest, name: str) -> None:
    """Checks size and sha256 of a file that the manifest names; raises CheckpointError where they differ."""
    path, record = place / name, manifest.files[name]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"{place}: {name} is missing") from None
    if size != record.size:
        raise CheckpointError(f"{path} has {size} bytes, its manifest says {record.size}")
    if sha256_of(path) != record.sha256:
        raise CheckpointError(f"{path} does not have the sha256 that its manifest says")


def list_checkpoints(run_folder: Path, on_error: OnError = _tell) -> list[Path]:
    """The run's checkpoints that have a manifest, by step as a number, oldest first.

    Args:
        run_folder: ``<root>/<run>``; it may not exist.
        on_error: gets the error of every checkpoint that cannot be looked at, which is then passed over.

    Raises:
        OSError: the run's folder itself cannot be read.
    """
    found = []
    for place in run_folder.iterdir() if run_folder.is_dir() else ():
        match = _STEP_FOLDER.fullmatch(place.name)
        try:
            if match and (place / MANIFEST).is_file():
                found.append((int(match[1]), place))
        except OSError as error:
            on_error(error)
    return [place for _, place in sorted(found)]


def newest_runs(root: Path, on_error: OnError = _tell) -> list[Path]:
    """Folders of the runs that have published, the one that published last first.

    Args:
        root: the checkpoints folder; it may not exist.
        on_error: gets the error of every folder that cannot be read, such as lost+found, which is then passed over.

    Raises:
        OSError: the checkpoints folder itself cannot be read.
    """
    published = []
    for folder in root.iterdir() if root.is_dir() else ():
        try:
            if places := list_checkpoints(folder, on_error):
                published.append(((places[-1] / MANIFEST).stat().st_mtime_ns, folder))
        except OSError as error:
            on_error(error)
    return [folder for _, folder in sorted(published, key=lambda entry: -entry[0])]


def chosen_checkpoint(root: Path, run: str | None = None, on_error: OnError = _tell) -> Path | None:
    """The checkpoint to serve: the pinned one, else the newest of the run.

    Args:
        root: the checkpoints folder.
        run: a run's name; None takes the run that published last.
        on_error: gets the error of every folder that cannot be read, which is then passed over.

    Returns:
        A checkpoint's folder, or None when nothing is published yet.

    Raises:
        CheckpointError: the run is pinned to a step that is not there.
        OSError: the checkpoints folder, or that of ``run``, cannot be read.
    """
    if run is None:
        runs = newest_runs(root, on_error)
        if not runs:
            return None
        run = runs[0].name
    pin = root / run / PINNED
    if pin.is_file():
        name = _pinned_name(pin)
        place = root / run / name
        if not _STEP_FOLDER.fullmatch(name) or not (place / MANIFEST).is_file():
            raise CheckpointError(f"{pin} names {name!r}, which is no checkpoint of this run; {_HOW_TO_PIN}")
        return place
    places = list_checkpoints(root / run, on_error)
    return places[-1] if places else None


def _pinned_name(pin: Path) -> str:
    """What the file says, in UTF-8 or, as Windows PowerShell writes, in UTF-16 with a byte order mark."""
    try:
        with pin.open("rb") as file:
            content = file.read(_LONGEST_PIN)
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        return content.decode(encoding).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{pin} cannot be read: {error}; {_HOW_TO_PIN}") from None


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a server tells about the checkpoint that it serves."""
    return manifest.model_dump(
        include={"run", "step", "chunk_size", "latent_size", "teacher", "created", "metrics"}
    ) | {"id": manifest.id}
