"""From what a user names to a model with its tokenizer, and to held-out data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.core.checkpoints import chosen_checkpoint, list_checkpoints
from latentforge.core.manifest import MANIFEST
from latentforge.model.checkpoint import load_checkpoint
from latentforge.model.io import CONFIG_FILE, load_token_level
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData, check_data
from latentforge.text.text_source import TextSource
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.sections import DataRecipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.data.prepare import is_packed, pack_with_bar
from latentforge.trainer.data.sources import write_stdlib
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.likelihood import Model
from latentforge.trainer.run.tokenizer import teachers_tokenizer

NEWEST = "newest"
TEACHER = "teacher"
_LONGEST = 2048


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        id: what the results call it.
        model: None for the teacher.
        tokenizer: its own.
        held_out: where its run keeps held-out data; None where that is unknown.
        fallback: whether it stands in while nothing is published; then it has learnt the standard library.
    """

    id: str
    model: Model | None
    tokenizer: TextTokenizer
    held_out: Path | None
    fallback: bool = False

    @property
    def chunk_size(self) -> int:
        return 1 if self.model is None else self.model.chunk_size

    @property
    def kind(self) -> str:
        if self.model is None:
            return "teacher"
        return "student" if isinstance(self.model, LatentModel) else "token-level"


def load_subject(
    name: str,
    settings: TrainerSettings,
    *,
    eos_id: int | None = None,
    pad_id: int | None = None,
    bos: bool | None = None,
) -> Subject:
    """Finds and loads what is to be evaluated.

    Args:
        name: a published checkpoint's folder, a run's folder or name (its newest checkpoint), a token-level student's
            folder, "newest" (while nothing is published, that of ``settings.fallback_run``) or "teacher".
        settings: say where checkpoints, runs and the tokenizer are.
        eos_id, pad_id, bos: of the teacher's text, see :class:`TextTokenizer`.

    Raises:
        TrainerError: there is nothing of that name, or they are given for what has its own.
        ValueError: it is there, but not whole; the message names the file.
    """
    if name == TEACHER:
        return Subject(TEACHER, None, teachers_tokenizer(settings, eos_id=eos_id, pad_id=pad_id, bos=bos), None)
    if (eos_id, pad_id, bos) != (None, None, None):
        raise TrainerError(
            f"--eos-id, --pad-id and --bos go with {TEACHER!r} only; {name} has what it learnt with, leave them out"
        )
    place, fallback = _find(name, settings)
    if (place / MANIFEST).is_file():
        # Wherever it was copied to.
        files = CheckpointFiles(place, anywhere=True)
        manifest, latent = files.manifest, load_checkpoint(files).model
        files.check_rest()
        held_out = settings.runs_dir / manifest.run / "data" / "held-out"
        return Subject(
            manifest.id,
            latent,
            _tokenizer(place / "tokenizer", latent, manifest.bos_id is not None, files.read_folder("tokenizer")),
            held_out,
            fallback,
        )
    token_level = load_token_level(place)
    folders = (place / "tokenizer", place.parent / "tokenizer")
    folder = next((f for f in folders if f.is_dir()), settings.tokenizer_path)
    return Subject(str(place), token_level, _tokenizer(folder, token_level), place.parent / "data" / "held-out")


def _find(name: str, settings: TrainerSettings) -> tuple[Path, bool]:
    """The folder that a name stands for, and whether it is the fallback."""
    root = settings.checkpoints_dir
    if name == NEWEST:
        if (newest := chosen_checkpoint(root)) is not None:
            return newest, False
        if settings.fallback_run and (shipped := list_checkpoints(settings.fallback_run)):
            return shipped[-1], True
        raise TrainerError(
            f"nothing is published in CHECKPOINTS_DIR={root}; train a student, or name what is to be evaluated"
        )
    for place in (Path(name), root / name):
        if (place / MANIFEST).is_file() or _is_token_level(place):
            return place, False
        if published := list_checkpoints(place):
            return published[-1], False
    raise TrainerError(
        f"{name!r} is no published checkpoint, no run of {root} and no token-level student's folder; give a folder "
        f"with {MANIFEST} or {CONFIG_FILE} in it, a run, '{NEWEST}' or '{TEACHER}'"
    )


def _is_token_level(place: Path) -> bool:
    try:
        config = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("kind") == "token-level"


def _tokenizer(
    folder: Path, model: Model, bos: bool | None = None, contents: Mapping[str, bytes] | None = None
) -> TextTokenizer:
    config = model.config if isinstance(model, TokenLevelModel) else model.student.config
    return TextTokenizer(folder, eos_id=config.eos_id, pad_id=config.pad_id, bos=bos, contents=contents)


def load_data(
    path: Path | None, subject: Subject, settings: TrainerSettings, sequence_length: int | None, console: Console
) -> PackedData:
    """Held-out data that fits the subject.

    Args:
        path: a packed folder, a JSONL file, which is packed into runs/evaluate/, or None for what its run held out; for
            a fallback those are the library's held-out files. Of a folder that was packed for training only the part is
            taken that a run on it holds out.
        subject: what reads it.
        settings: say where runs are.
        sequence_length: tokens per sequence of a JSONL file; None is 2048, or the subject's context if that is smaller.
        console: told what was packed or left out.

    Raises:
        TrainerError: there is none, or it does not fit.
    """
    if path is None and subject.fallback:
        path = settings.runs_dir / "evaluate" / "stdlib-held-out.jsonl"
        write_stdlib(path, "held-out")
        console.print(
            f"nothing is published: {subject.id} is evaluated, on the held-out files of the standard library",
            soft_wrap=True,
            highlight=False,
        )
    elif path is None:
        if subject.held_out is None or not subject.held_out.is_dir():
            raise TrainerError(
                f"there is no held-out data at {subject.held_out}: give DATA, a packed folder or a JSONL file. Of a "
                "folder that a run was trained on the part is taken that it held out"
                if subject.held_out is not None
                else "give DATA, a packed folder or a JSONL file"
            )
        path = subject.held_out
    if not is_packed(path):
        path = _packed(path, subject, settings, sequence_length, console)
    elif sequence_length is not None:
        raise TrainerError(f"--sequence-length {sequence_length}, but {path} is packed already; leave it out")
    data = PackedData(path)
    check_data(data, subject.tokenizer, subject.chunk_size)
    if data.meta.split == "train":
        data = split_tail(data)[1]
        console.print(
            f"{path} was packed for training: the last {len(data)} of its sequences, which a run on it holds out, are "
            "taken. Pack it with --split held-out to take all",
            soft_wrap=True,
            highlight=False,
        )
    return data


def _packed(
    source: Path, subject: Subject, settings: TrainerSettings, sequence_length: int | None, console: Console
) -> Path:
    k = subject.chunk_size
    length = sequence_length or min(_LONGEST, _context(subject)) // k * k
    out = settings.runs_dir / "evaluate" / f"{source.stem}-{subject.tokenizer.fingerprint[-8:]}-k{k}-{length}"
    pack_with_bar(
        TextSource.of(source),
        {"held-out": out},
        subject.tokenizer,
        DataRecipe(sequence_length=length),
        chunk_size=k,
        console=console,
    )
    return out


def _context(subject: Subject) -> int:
    """The most tokens that a subject reads."""
    return _LONGEST if subject.model is None else subject.model.max_tokens
