"""What a folder of kept rows says of itself: ``manifest.json``, written before the first row and never changed."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.core.files import write_atomically
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import LogprobDtype
from latentforge.trainer.errors import TrainerError

MANIFEST, CARD, DATA = "manifest.json", "README.md", "data"

# What the Hugging Face hub calls them.
KeptSplit = Literal["train", "validation"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeptTeacher(_Part):
    """What GetTeacher said of whoever gave the rows."""

    backend: str
    model: str
    revision: str
    quantization: str
    engine: str
    vocab_size: int
    tokenizer_fingerprint: str
    logprobs_mode: int
    id_fidelity: int
    bos_id: int | None

    @classmethod
    def of(cls, answer: pb.GetTeacherResponse) -> Self:
        values = {name: getattr(answer, name) for name in cls.model_fields if name != "bos_id"}
        return cls(**values, bos_id=answer.bos_id if answer.HasField("bos_id") else None)

    def as_answer(self, kind: str, top_k: int) -> pb.GetTeacherResponse:
        """What it would say today, had it rows of ``kind`` and so many entries, and nothing else."""
        values = self.model_dump()
        return pb.GetTeacherResponse(
            **values, can_score=kind == "score", can_generate=kind == "generate", max_top_k=top_k, healthy=True
        )


class SplitFiles(_Part):
    """One split: ``num_sequences`` in files of ``per_file``, the last one shorter; ``data`` is what they are of."""

    num_sequences: int = Field(ge=0)
    per_file: int = Field(ge=1)
    data: dict[str, Any]

    @property
    def num_files(self) -> int:
        return -(-self.num_sequences // self.per_file)

    def sequences(self, file: int) -> range:
        """Places, among the split's sequences, of those that a file holds."""
        return range(file * self.per_file, min((file + 1) * self.per_file, self.num_sequences))


class KeptBy(_Part):
    """How the folder was made."""

    command: str
    version: str
    created: str


class KeptManifest(_Part):
    """``manifest.json`` of a folder of kept rows.

    Attributes:
        kind: score, rows on given text; or generate, rows on text that the teacher wrote.
        teacher: whose rows they are.
        top_k: entries that a row has at most.
        logprob_dtype: of the entries' log-probabilities; the realised token's and the tail are float32.
        share: of the training sequences, how many were chosen (``teacher.share``).
        mask_documents: whether each document of a sequence was scored by itself (``data.mask_documents``): then a line
            is a part of a document, and a file holds those of its sequences.
        splits: their files and data.
        made: how.
    """

    format_version: Literal[1] = 1
    kind: Literal["score", "generate"]
    teacher: KeptTeacher
    top_k: int
    logprob_dtype: LogprobDtype
    share: float
    mask_documents: bool = False
    splits: dict[KeptSplit, SplitFiles]
    made: KeptBy

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of a folder.

        Raises:
            TrainerError: it is missing, or not a manifest of this version.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainerError(
                f"{path} cannot be read ({error.strerror}); give a folder that `trainer score` made"
            ) from None
        except ValidationError as error:
            said = "; ".join(describe_errors(error))
            raise TrainerError(f"{path} is not a manifest of this version: {said}; score the data anew") from None

    def claim(self, folder: Path) -> None:
        """Writes it into a folder, or finds that the folder was begun with the same, whenever and by whichever command.

        Raises:
            TrainerError: it was begun with something else (the field and both values), or holds other files.
        """
        # Looked through before the manifest: another shard may begin the folder meanwhile.
        others = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
        if not (folder / MANIFEST).is_file():
            if others:
                raise TrainerError(f"{folder} has no {MANIFEST} and is not empty ({min(others)}); give another --out")
            write_atomically(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")
            return
        theirs = KeptManifest.read(folder)
        for name, (old, new) in _differences(theirs.about(), self.about()).items():
            raise TrainerError(
                f"{folder} was begun with {name} = {old!r}, now it is {new!r}; go on with the old value, or give "
                "another --out"
            )

    def about(self) -> dict[str, Any]:
        """All that the rows depend on."""
        return self.model_dump(mode="json", exclude={"made"})

    def files(self) -> list[tuple[KeptSplit, int]]:
        """All files that make the folder whole: split and number."""
        return [(split, number) for split, part in self.splits.items() for number in range(part.num_files)]

    def path(self, folder: Path, split: KeptSplit, number: int) -> Path:
        return folder / DATA / f"{split}-{number:05d}-of-{self.splits[split].num_files:05d}.parquet"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        ours, theirs = old.get(name), new.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= _differences(ours, theirs, f"{prefix}{name}.")
        elif ours != theirs:
            found[prefix + name] = (ours, theirs)
    return found
