"""Packed data: sequences of token ids, memory-mapped; :mod:`latentforge.text.packing` writes it.

A packed folder holds

- ``tokens.bin``: token ids, little-endian uint16 or uint32, [num_sequences, sequence_length];
- ``documents.bin``: int64, where each document starts, counted in tokens from the start of ``tokens.bin``;
- ``meta.json``: :class:`PackedMeta`.

Every document is followed by the end-of-text id; documents follow one another without regard to sequences. Where
``bos_id`` is one, every sequence begins with it: the teacher is asked about sequences, and one that never saw a text
without its bos gives nonsense for such. The tokens after the last whole sequence are dropped (``num_dropped_tokens``
says how many): a training sequence is never padded on the right.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.text.documents import Document
from latentforge.text.errors import TextError
from latentforge.text.tokenizer import TextTokenizer

# Counting makes 8 bytes of each.
_COUNTED_AT_ONCE = 2**20

META = "meta.json"
TOKENS = "tokens.bin"
DOCUMENTS = "documents.bin"


class PackedMeta(BaseModel):
    """What a packed folder holds and what it was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # 2: what chats say is text, so that older ids may be others; sequences may begin with bos.
    format_version: Literal[2] = 2
    chunk_size: int
    sequence_length: int
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    eos_id: int
    pad_id: int
    bos_id: int | None
    tokenizer_fingerprint: str
    num_sequences: int
    num_documents: int
    num_empty_documents: int
    num_dropped_tokens: int
    source: str
    source_sha256: str
    split: str
    #: the column that held the text
    text_column: str | None = None
    #: the hash below which documents were held out, where data was divided while it was read
    held_out_below: int | None = None
    #: lines that were not as expected and left out
    num_bad_lines: int = 0
    #: places at which the ids may be others than those of the whole text, see :mod:`latentforge.text.long_texts`
    num_forced_cuts: int = 0


class DocumentSource(Protocol):
    """Documents that can be read anew."""

    def documents(self) -> Iterator[Document]: ...


class PackedData:
    """The sequences of a packed folder, or a range of them; nothing is read before it is asked for.

    Args:
        folder: the packed folder.
        source: the documents that it was packed from, where they are at hand.

    Raises:
        TextError: the folder is not packed data, or its files do not fit its meta.json.
    """

    def __init__(self, folder: Path, source: DocumentSource | None = None) -> None:
        self.folder, self.source = folder, source
        self._first_token = 0
        path = folder / META
        try:
            self.meta = PackedMeta.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TextError(f"{path} cannot be read ({error.strerror}); make the folder with `trainer pack`") from None
        except ValidationError as error:
            wrong = "; ".join(describe_errors(error))
            raise TextError(f"{path}: {wrong}; make the folder again with `trainer pack`") from None
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        shape = (self.meta.num_sequences, self.meta.sequence_length)
        size = (folder / TOKENS).stat().st_size if (folder / TOKENS).is_file() else 0
        if size != shape[0] * shape[1] * dtype.itemsize:
            raise TextError(
                f"{folder / TOKENS} has {size} bytes, {META} says {shape[0]} x {shape[1]} {self.meta.dtype}; "
                "make the folder again with `trainer pack`"
            )
        self._tokens: NDArray[np.uint16] | NDArray[np.uint32] = np.memmap(folder / TOKENS, dtype, "r", shape=shape)

    def __len__(self) -> int:
        """Sequences."""
        return int(self._tokens.shape[0])

    def sequence(self, index: int) -> NDArray[np.int64]:
        """Sequence ``index``, int64 [L]."""
        ids: NDArray[np.int64] = self._tokens[index].astype(np.int64)
        return ids

    @property
    def tokens(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """All sequences one after another, [num_sequences · L], not copied."""
        return self._tokens.reshape(-1)

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each id stands in these sequences, int64 [V]; they are read in blocks."""
        counts = np.zeros(vocab_size, np.int64)
        tokens = self.tokens
        for start in range(0, len(tokens), _COUNTED_AT_ONCE):
            counts += np.bincount(tokens[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
        return counts

    def document_starts(self) -> NDArray[np.int64]:
        """Where documents start, in tokens from the start of the folder's first sequence; not copied."""
        path = self.folder / DOCUMENTS
        # An empty file cannot be mapped.
        return np.memmap(path, "<i8", "r") if path.stat().st_size else np.empty(0, np.int64)

    def document_parts(self, index: int) -> list[NDArray[np.int64]]:
        """Sequence ``index`` cut where documents begin in it, int64 [n] each; they are the sequence together."""
        length = self.meta.sequence_length
        first = self._first_token + index * length
        starts = self.document_starts()
        at = np.searchsorted(starts, [first + 1, first + length])
        return np.split(self.sequence(index), np.asarray(starts[at[0] : at[1]]) - first)

    def document_beginnings(self, max_tokens: int) -> Iterator[list[int]]:
        """The first ids, up to ``max_tokens``, of each document that begins in these sequences.

        They are the document's own: no end-of-text id, and no bos that was put where a sequence begins.
        """
        length, bos_id = self.meta.sequence_length, self.meta.bos_id
        begin, end = self._first_token, self._first_token + len(self.tokens)
        starts = self.document_starts()
        first, last = np.searchsorted(starts, [begin, end]).tolist()
        # As many more as sequences may begin in between.
        reach = max_tokens + (0 if bos_id is None else 1 + max_tokens // (length - 1))
        for number in range(first, last):
            start = int(starts[number]) - begin
            stop = int(starts[number + 1]) - begin if number + 1 < last else len(self.tokens)
            places = np.arange(start, min(stop, start + reach))
            found = self.tokens[places]
            if bos_id is not None:
                found = found[(places == start) | (places % length != 0) | (found != bos_id)]
            ids = found[:max_tokens].tolist()
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
        counts = {name for name in PackedMeta.model_fields if name.startswith("num_")} - {"num_sequences"}
        return self.meta.model_dump(exclude=counts | {"source"})


def check_data(data: PackedData, tokenizer: TextTokenizer, chunk_size: int) -> None:
    """Raises TextError when packed data was made with another tokenizer, other ids or a K that does not divide
    it."""
    meta = data.meta
    for name, theirs, ours in (
        ("tokenizer fingerprint", meta.tokenizer_fingerprint, tokenizer.fingerprint),
        ("eos_id", meta.eos_id, tokenizer.eos_id),
        ("pad_id", meta.pad_id, tokenizer.pad_id),
        ("bos_id", meta.bos_id, tokenizer.bos_id),
    ):
        if theirs != ours:
            raise TextError(
                f"{data.folder} was packed with {name} {theirs}, TOKENIZER_PATH={tokenizer.folder} has {ours}; pack "
                "it again"
            )
    if meta.sequence_length % chunk_size:
        raise TextError(
            f"{data.folder} has sequences of {meta.sequence_length} (packed for K={meta.chunk_size}), "
            f"which K={chunk_size} does not divide; pack it again with --k {chunk_size}"
        )
