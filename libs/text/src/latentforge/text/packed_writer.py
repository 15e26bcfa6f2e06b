"""The files of a packed folder, written document by document; what is on the disk at a save can be resumed from."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentforge.core.files import fsync
from latentforge.text.encoding import EncodedBlock
from latentforge.text.packed import DOCUMENTS, META, TOKENS, PackedMeta


class PackedWriter:
    """One split's ``tokens.bin`` and ``documents.bin``.

    Args:
        folder: where they are.
        dtype: of the ids.
        sequence_length: tokens per sequence.
        bos_id: what every sequence begins with; None for nothing.
        saved: what :meth:`save` gave; None begins anew. What was written after it is written again.

    Attributes:
        num_tokens, num_documents: so far.
    """

    def __init__(
        self, folder: Path, dtype: str, sequence_length: int, bos_id: int | None, saved: dict[str, int] | None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._length, self._bos_id = folder, sequence_length, bos_id
        self._dtype = np.dtype(dtype).newbyteorder("<")
        saved = saved or {}
        self.num_tokens, self.num_documents = saved.get("tokens", 0), saved.get("documents", 0)
        self._num_empty, self._num_forced = saved.get("empty", 0), saved.get("forced", 0)
        self._tokens, self._documents = (
            os.fdopen(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666), "r+b") for name in (TOKENS, DOCUMENTS)
        )
        sizes = self.num_tokens * self._dtype.itemsize, self.num_documents * 8
        for file, size in zip((self._tokens, self._documents), sizes, strict=True):
            file.seek(size)

    @property
    def num_sequences(self) -> int:
        """Whole ones, so far."""
        return self.num_tokens // self._length

    def add(self, encoded: EncodedBlock, chosen: NDArray[np.bool_] | None) -> None:
        """Writes a block's documents; with ``chosen`` only those where it is True, bool [n]."""
        lengths = encoded.lengths
        mine = np.ones(len(lengths), np.bool_) if chosen is None else chosen
        self._num_empty += int((lengths[mine] == 0).sum())
        self._num_forced += int(encoded.forced[mine].sum())
        kept = mine & (lengths > 0)
        if not kept.any():
            return
        ids = encoded.ids if kept[lengths > 0].all() else encoded.ids[np.repeat(kept, lengths)]
        lengths = lengths[kept]
        stops = np.cumsum(lengths)
        if self._bos_id is None:
            self._write(ids, self.num_tokens + stops - lengths)
            return
        starts = np.empty(len(lengths), np.int64)
        for number, (stop, length) in enumerate(zip(stops.tolist(), lengths.tolist(), strict=True)):
            self._write_with_bos(ids[stop - length : stop], starts[number : number + 1])

    def save(self) -> dict[str, int]:
        """Brings all to the disk; gives what an equal writer begins with."""
        for file in (self._tokens, self._documents):
            file.flush()
            os.fsync(file.fileno())
        return {
            "tokens": self.num_tokens,
            "documents": self.num_documents,
            "empty": self._num_empty,
            "forced": self._num_forced,
        }

    def finish(self) -> dict[str, Any]:
        """Closes the files; gives the counts of ``meta.json``, by which :func:`cut_to_sequences` cuts them."""
        kept = self.num_sequences * self._length
        self.close()
        starts = np.memmap(self._folder / DOCUMENTS, "<i8", "r", shape=(self.num_documents,))
        return {
            "num_sequences": self.num_sequences,
            "num_documents": int(np.searchsorted(starts, kept)),
            "num_empty_documents": self._num_empty,
            "num_dropped_tokens": self.num_tokens - kept,
            "num_forced_cuts": self._num_forced,
        }

    def close(self) -> None:
        self._tokens.close()
        self._documents.close()

    def _write(self, ids: NDArray[np.uint32], starts: NDArray[np.int64]) -> None:
        self._tokens.write(ids.astype(self._dtype).data)
        self._documents.write(starts.astype("<i8").data)
        self.num_tokens += len(ids)
        self.num_documents += len(starts)

    def _write_with_bos(self, ids: NDArray[np.uint32], start: NDArray[np.int64]) -> None:
        """One document, with bos where a sequence begins.

        A sequence that begins with the document's own bos, which chat templates write, gets no second one.
        """
        bos = np.array([self._bos_id], np.uint32)
        parts = []
        at, taken = self.num_tokens % self._length, 0
        start[0] = self.num_tokens + (at == 0 and ids[0] != self._bos_id)
        while taken < len(ids):
            if at == 0 and ids[taken] != self._bos_id:
                parts.append(bos)
                at = 1
            part = ids[taken : taken + self._length - at]
            parts.append(part)
            taken, at = taken + len(part), 0
        self._write(np.concatenate(parts), start)


def cut_to_sequences(folder: Path) -> None:
    """Cuts off what fills no sequence, and the starts of documents there, as ``meta.json`` says."""
    meta = PackedMeta.model_validate_json((folder / META).read_bytes())
    num_tokens = meta.num_sequences * meta.sequence_length
    for name, size in ((TOKENS, num_tokens * np.dtype(meta.dtype).itemsize), (DOCUMENTS, meta.num_documents * 8)):
        os.truncate(folder / name, size)
        fsync(folder / name)
