"""Packed data: JSONL to memory-mapped sequences of token ids, and back.

A packed folder holds

- ``tokens.bin``: token ids, little-endian uint16 or uint32, [num_sequences, sequence_length];
- ``documents.bin``: int64, where each document starts, counted in tokens from the start of ``tokens.bin``;
- ``meta.json``: :class:`PackedMeta`.

Every document is followed by the end-of-text id; documents follow one another without regard to sequences. The
tokens after the
last whole sequence are dropped (``num_dropped_tokens`` says how many): a training sequence is never padded on the
right.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from latentforge.core.settings import describe_errors
from latentforge.trainer.documents import EXPECTED, Document, read_documents
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.tokenizer import TextTokenizer

META = "meta.json"
TOKENS = "tokens.bin"
DOCUMENTS = "documents.bin"
_BATCH_DOCUMENTS = 64


class PackedMeta(BaseModel):
    """What a packed folder holds and what it was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    chunk_size: int
    sequence_length: int
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    eos_id: int
    pad_id: int
    tokenizer_fingerprint: str
    num_sequences: int
    num_documents: int
    num_empty_documents: int
    num_dropped_tokens: int
    source: str
    source_sha256: str
    split: str


def check_lengths(sequence_length: int, chunk_size: int) -> None:
    """Raises TrainerError unless sequences are at least two whole chunks."""
    if chunk_size < 1:
        raise TrainerError(f"k={chunk_size}: a chunk has at least 1 token")
    if sequence_length % chunk_size or sequence_length < 2 * chunk_size:
        below = max(2, sequence_length // chunk_size) * chunk_size
        raise TrainerError(
            f"sequence_length={sequence_length} is not a multiple (2 or more) of K={chunk_size}; "
            f"set it to {below} or {below + chunk_size}"
        )


def pack_jsonl(
    source: Path,
    out: Path,
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    chunk_size: int,
    split: str,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> PackedMeta:
    """Packs a JSONL file into the folder ``out``, which appears whole or not at all.

    A folder that already holds the same packing is kept; another packing there is replaced.

    Args:
        source: documents, {"text"} or {"messages"} per line.
        out: the packed folder.
        tokenizer: the teacher's.
        sequence_length: tokens per sequence, a multiple of ``chunk_size``.
        chunk_size: K.
        split: recorded in the folder, "train" or "held-out".
        on_bytes: told how many bytes of the file were packed since the last call.

    Raises:
        TrainerError: bad lengths, a bad line, too few tokens for one sequence, or ``out`` holds something else.
    """
    check_lengths(sequence_length, chunk_size)
    if not source.is_file():
        raise TrainerError(f"{source} is no file; give a file with {EXPECTED}")
    wanted = {
        "chunk_size": chunk_size,
        "sequence_length": sequence_length,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "dtype": "uint16"
        if max(tokenizer.vocab_size, tokenizer.pad_id + 1, tokenizer.eos_id + 1) <= 2**16
        else "uint32",
        "source": source.name,
        "source_sha256": _sha256(source),
        "split": split,
    }
    if out.exists():
        if not (out / META).is_file() and any(out.iterdir()):
            raise TrainerError(f"{out} exists and is no packed data; give another --out")
        if (out / META).is_file() and (kept := _same_packing(out, wanted)):
            return kept
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        meta = _write(source, temporary, tokenizer, wanted, on_bytes)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


def _same_packing(out: Path, wanted: dict[str, object]) -> PackedMeta | None:
    try:
        meta = PackedData(out).meta
    except TrainerError:
        return None
    return meta if wanted.items() <= meta.model_dump().items() else None


def _write(
    source: Path, folder: Path, tokenizer: TextTokenizer, wanted: dict[str, object], on_bytes: Callable[[int], None]
) -> PackedMeta:
    dtype = np.dtype(str(wanted["dtype"])).newbyteorder("<")
    length = int(str(wanted["sequence_length"]))
    starts = array("q")
    position = num_empty = 0
    with (folder / TOKENS).open("wb") as file:
        for batch in _batches(read_documents(source)):
            for document, ids in zip(batch, _encode(tokenizer, batch), strict=True):
                if not ids:
                    num_empty += 1
                    continue
                if tokenizer.pad_id in ids:
                    raise TrainerError(
                        f"{source}, line {document.line}: the chat renders to the pad id {tokenizer.pad_id}; take "
                        "the pad token out"
                    )
                starts.append(position)
                file.write(np.array([*ids, tokenizer.eos_id], dtype=dtype).tobytes())
                position += len(ids) + 1
            on_bytes(sum(d.num_bytes for d in batch))
        num_sequences = position // length
        if not starts:
            raise TrainerError(f"{source} has no documents; expected {EXPECTED}")
        if not num_sequences:
            raise TrainerError(
                f"{source} has {position} tokens, fewer than one sequence of {length}; "
                "give more documents or a smaller --sequence-length"
            )
        _sync(file, num_sequences * length * dtype.itemsize)
    kept = num_sequences * length
    with (folder / DOCUMENTS).open("wb") as file:
        offsets = np.array(starts, dtype="<i8")
        file.write(offsets[offsets < kept].tobytes())
        _sync(file)
    meta = PackedMeta.model_validate(
        {
            **wanted,
            "num_sequences": num_sequences,
            "num_documents": int((offsets < kept).sum()),
            "num_empty_documents": num_empty,
            "num_dropped_tokens": position - kept,
        }
    )
    (folder / META).write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return meta


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        yield batch


def _encode(tokenizer: TextTokenizer, batch: list[Document]) -> list[list[int]]:
    texts = iter(tokenizer.encode_texts([d.text for d in batch if d.text is not None]))
    chats = iter(tokenizer.encode_chats([d.messages for d in batch if d.messages is not None]))
    return [next(texts if d.text is not None else chats) for d in batch]


def _sync(file: BinaryIO, size: int | None = None) -> None:
    file.flush()
    if size is not None:
        file.truncate(size)
    os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PackedData:
    """The sequences of a packed folder, or a range of them; nothing is read before it is asked for.

    Args:
        folder: the packed folder.
        source: the documents that it was packed from, where they are at hand.

    Raises:
        TrainerError: the folder is not packed data, or its files do not fit its meta.json.
    """

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        self.folder, self.source = folder, source
        self._first_token = 0
        path = folder / META
        try:
            self.meta = PackedMeta.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainerError(
                f"{path} cannot be read ({error.strerror}); make the folder with `trainer pack`"
            ) from None
        except ValidationError as error:
            raise TrainerError(f"{path}: {describe_errors(error)}; make the folder again with `trainer pack`") from None
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        shape = (self.meta.num_sequences, self.meta.sequence_length)
        size = (folder / TOKENS).stat().st_size if (folder / TOKENS).is_file() else 0
        if size != shape[0] * shape[1] * dtype.itemsize:
            raise TrainerError(
                f"{folder / TOKENS} has {size} bytes, {META} says {shape[0]} x {shape[1]} {self.meta.dtype}; "
                "make the folder again with `trainer pack`"
            )
        self._tokens: NDArray[np.uint16] | NDArray[np.uint32] = np.memmap(folder / TOKENS, dtype, "r", shape=shape)

    def __len__(self) -> int:
        """Sequences."""
        return int(self._tokens.shape[0])

    def sequence(self, index: int) -> Tensor:
        """Sequence ``index``, int64 [L]."""
        return torch.from_numpy(self._tokens[index].astype(np.int64))

    @property
    def tokens(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """All sequences one after another, [num_sequences · L], not copied."""
        return self._tokens.reshape(-1)

    def document_starts(self) -> NDArray[np.int64]:
        """Where documents start, in tokens from the start of the folder's first sequence."""
        return np.fromfile(self.folder / DOCUMENTS, dtype="<i8")

    def document_beginnings(self, max_tokens: int) -> Iterator[list[int]]:
        """The first ids, up to ``max_tokens``, of each document that begins in these sequences; no end-of-text ids."""
        begin, end = self._first_token, self._first_token + len(self.tokens)
        starts = self.document_starts()
        starts = starts[(begin <= starts) & (starts < end)] - begin
        stops = np.append(starts[1:], len(self.tokens))
        for start, stop in zip(starts, stops, strict=True):
            ids = self.tokens[start : min(stop, start + max_tokens)].tolist()
            yield ids[:-1] if ids[-1] == self.meta.eos_id else ids

    def part(self, start: int, stop: int) -> "PackedData":
        """Sequences ``start`` to ``stop``, as if they were all."""
        view = PackedData.__new__(PackedData)
        view.folder, view.source = self.folder, None
        view._first_token = self._first_token + start * self.meta.sequence_length
        view.meta = self.meta.model_copy(
            update={"num_sequences": stop - start, "split": f"{self.meta.split}[{start}:{stop}]"}
        )
        view._tokens = self._tokens[start:stop]
        return view

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""
        return self.meta.model_dump(exclude={"num_documents", "num_empty_documents", "num_dropped_tokens", "source"})


def split_tail(data: PackedData, percent: int = 5) -> tuple[PackedData, PackedData]:
    """Cuts the last ``percent`` of the sequences off as held-out, at least one.

    Raises:
        TrainerError: there is only one sequence.
    """
    num_held_out = max(1, len(data) * percent // 100)
    if num_held_out >= len(data):
        raise TrainerError(f"{data.folder} holds {len(data)} sequence, none is left to hold out; give --held-out DIR")
    cut = len(data) - num_held_out
    return data.part(0, cut), data.part(cut, len(data))


def check_data(data: PackedData, tokenizer: TextTokenizer, chunk_size: int) -> None:
    """Raises TrainerError when packed data was made with another tokenizer, other ids or a K that does not divide
    it."""
    meta = data.meta
    for name, theirs, ours in (
        ("tokenizer fingerprint", meta.tokenizer_fingerprint, tokenizer.fingerprint),
        ("eos_id", meta.eos_id, tokenizer.eos_id),
        ("pad_id", meta.pad_id, tokenizer.pad_id),
    ):
        if theirs != ours:
            raise TrainerError(
                f"{data.folder} was packed with {name} {theirs}, TOKENIZER_PATH={tokenizer.folder} has {ours}; pack "
                "it again"
            )
    if meta.sequence_length % chunk_size:
        raise TrainerError(
            f"{data.folder} has sequences of {meta.sequence_length} (packed for K={meta.chunk_size}), "
            f"which K={chunk_size} does not divide; pack it again with --k {chunk_size}"
        )
