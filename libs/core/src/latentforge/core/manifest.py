"""A checkpoint's manifest: the commit record that is written last, and what it says of every other file."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from latentforge.core.errors import describe_errors

MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step-([0-9]+)")
# A thousand times what one of a few hundred tokens takes.
LONGEST_MANIFEST = 2**24
# A manifest is read whole, and often.
MOST_SAMPLES = 32
_WHAT_TO_DO = "train and publish the student anew, or serve it with the version that published it"


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

    size: int = Field(ge=0)
    sha256: str


class Golden(BaseModel):
    """What the student makes of a text that it has not learnt from; whoever loads the checkpoint must find the same.

    Everything is teacher-forced: each figure is of the student's distribution at a token, given the true ones before.

    Attributes:
        text: of the run's evaluation split.
        token_ids: its n ids, bos before them where sequences begin so.
        logprobs: of each of them, in nats.
        uniforms: n numbers from [0, 1).
        drawn_ids: what they draw at the n places: the first id at which the distribution, summed up in the order of
            ids, exceeds the number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    token_ids: tuple[int, ...] = Field(min_length=1)
    logprobs: tuple[FiniteFloat, ...]
    uniforms: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    drawn_ids: tuple[int, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("logprobs", "uniforms", "drawn_ids"):
            if len(getattr(self, name)) != len(self.token_ids):
                raise ValueError(f"{len(getattr(self, name))} {name} of {len(self.token_ids)} token_ids")
        return self


class TextSample(BaseModel):
    """What a student writes after a prompt, for people to read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    text: str


def _printable(run: str) -> str:
    if not run.isprintable() or "/" in run or run in (".", ".."):
        raise ValueError(f"{run!r} is no name of a folder that can be printed")
    return run


class ManifestDraft(BaseModel):
    """What a publisher knows of a checkpoint; the manifest says run, step, time and files besides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk_size: int = Field(ge=1)
    latent_size: int = Field(ge=1)
    tokenizer_fingerprint: str
    # What every sequence begins with that the student learnt from, and so every prompt.
    bos_id: int | None = None
    # What ends an assistant's answer besides the student's own end of text.
    end_ids: tuple[int, ...] = ()
    teacher: TeacherId
    metrics: dict[str, FiniteFloat]
    golden: Golden
    # A manifest without any of these does not name them, so that a version that does not know them reads it.
    samples: tuple[TextSample, ...] = Field((), max_length=MOST_SAMPLES)
    # Decay of the moving average over the steps that the student's weights are; None where they are the last step's.
    ema: float | None = Field(None, gt=0, lt=1)


class Manifest(ManifestDraft):
    """The commit record of a checkpoint."""

    # Raised whenever configs or tensors change in name or meaning: an older checkpoint is refused in plain words then,
    # where it would fail on some field or, worse, give other logits.
    format_version: Literal[5] = 5
    run: Annotated[str, Field(min_length=1), AfterValidator(_printable)]
    step: int = Field(ge=0)
    created: str
    files: dict[str, FileRecord]

    @field_validator("created")
    @classmethod
    def _check_created(cls, created: str) -> str:
        parse_time(created)
        return created

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise ValueError(f"{name!r} is no name of a file in the checkpoint's folder")
        return files

    @property
    def id(self) -> str:
        """What answers call the checkpoint: ``<run>/step-00001200``."""
        return f"{self.run}/{step_folder(self.step)}"


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


def parse_time(text: str) -> datetime:
    """ISO 8601 with an offset from UTC.

    Raises:
        ValueError: it is something else.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC")
    return time.astimezone(UTC)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """A manifest from what its file holds.

    Args:
        content: JSON in UTF-8.
        path: the file, for errors.

    Raises:
        CheckpointError: it is no manifest of this version.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        for wrong in error.errors():
            if wrong["loc"] == ("format_version",):
                raise CheckpointError(
                    f"{path}: format_version is {wrong['input']!r}, but this version reads only "
                    f"{Manifest.model_fields['format_version'].default}; {_WHAT_TO_DO}"
                ) from None
        raise CheckpointError(
            f"{path} is not a manifest of this version: {'; '.join(describe_errors(error))}; publish it anew"
        ) from None


def describe(manifest: Manifest) -> dict[str, Any]:
    """What a server tells about the checkpoint that it serves."""
    return manifest.model_dump(
        include={"run", "step", "chunk_size", "latent_size", "teacher", "created", "metrics"}
    ) | {"id": manifest.id}
