"""The teacher's continuations on disk: written as they arrive, found again after a kill.

A folder holds

- ``identity.json``: what its content depends on;
- ``shard-00000.bin`` …: records one after another: prompt ids and continuation ids, little-endian uint32, then the
  rows as ``core.sparse_rows.pack`` makes them;
- ``index.jsonl``: a line per prompt once all its continuations are in a shard: :class:`_Line`.

What a kill leaves half written is not in the index, and is cut off before anything is written after it.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from latentforge.teacher_client.sparse_rows import CorruptRowsError, LogprobDtype, SparseRows, pack, unpack

log = logging.getLogger(__name__)

_INDEX = "index.jsonl"
_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Continuation:
    """One continuation as the teacher gave it.

    Attributes:
        prompt_ids: uint32 [p], the prompt as the teacher saw it.
        token_ids: uint32 [t], t of 1 or more.
        rows: the teacher's for ``token_ids``; first_position is p.
        stopped: the teacher ended it itself.
    """

    prompt_ids: NDArray[np.uint32]
    token_ids: NDArray[np.uint32]
    rows: SparseRows
    stopped: bool


@dataclass(frozen=True)
class Dropped:
    """A continuation that cannot be used, and why."""

    reason: str


@dataclass(frozen=True)
class Record:
    """Where a continuation is.

    Attributes:
        shard, offset, size: of its bytes.
        crc: crc32 of its bytes.
        num_prompt_ids, num_token_ids: how its bytes begin.
        stopped: as in Continuation.
    """

    shard: int
    offset: int
    size: int
    crc: int
    num_prompt_ids: int
    num_token_ids: int
    stopped: bool


@dataclass(frozen=True)
class _Line:
    """One prompt's line of the index: its number, its continuations, and why others were dropped."""

    prompt: int
    records: list[Record]
    dropped: list[str]


class GeneratedStore:
    """The continuations in a folder; use as a context manager.

    Opening checks every record's checksum; a prompt whose records are torn counts as not asked.
    """

    def __init__(self, folder: Path, dtype: LogprobDtype = "float16", *, shard_bytes: int = _SHARD_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._dtype, self._shard_bytes = folder, dtype, shard_bytes
        self._lines: dict[int, _Line] = {}
        self._descriptors: dict[int, int] = {}
        self._read_index()
        self._index = (folder / _INDEX).open("ab")
        self._shard, self._file = self._open_last()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in (self._file, self._index):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __contains__(self, prompt: int) -> bool:
        """Whether a prompt's continuations are all here, dropped ones included."""
        return prompt in self._lines

    def append(self, prompt: int, continuations: Sequence[Continuation | Dropped]) -> None:
        """Keeps all continuations of one prompt; a kill before this returns may leave none of them."""
        records, dropped = [], []
        for continuation in continuations:
            if isinstance(continuation, Dropped):
                dropped.append(continuation.reason)
            else:
                records.append(self._write(continuation))
        self._file.flush()
        line = _Line(prompt, records, dropped)
        self._index.write(json.dumps(asdict(line)).encode() + b"\n")
        self._index.flush()
        self._lines[prompt] = line

    def records(self, prompts: Sequence[int]) -> list[Record]:
        """Where the usable continuations of prompts are, in the prompts' order."""
        return [record for prompt in prompts if prompt in self._lines for record in self._lines[prompt].records]

    def dropped(self) -> list[str]:
        """Why continuations were dropped, one reason each."""
        return [reason for line in self._lines.values() for reason in line.dropped]

    def num_tokens(self) -> int:
        """Tokens of the usable continuations."""
        return sum(record.num_token_ids for line in self._lines.values() for record in line.records)

    def num_usable(self) -> int:
        """Usable continuations."""
        return sum(len(line.records) for line in self._lines.values())

    def read(self, record: Record) -> Continuation:
        """A continuation, its arrays not copied."""
        data = self._bytes(record)
        ids = np.frombuffer(data, "<u4", record.num_prompt_ids + record.num_token_ids)
        rows = unpack(data[ids.nbytes :])
        return Continuation(ids[: record.num_prompt_ids], ids[record.num_prompt_ids :], rows, record.stopped)

    def digest(self, prompts: Sequence[int]) -> str:
        """Tells the continuations of prompts from others, in whatever order they arrived."""
        digest = hashlib.sha256()
        for record in self.records(prompts):
            digest.update(self._bytes(record))
        return digest.hexdigest()

    def _write(self, continuation: Continuation) -> Record:
        if self._file.tell() >= self._shard_bytes:
            self._file.close()
            self._shard += 1
            self._file = self._path(self._shard).open("ab")
        ids = np.concatenate([continuation.prompt_ids, continuation.token_ids]).astype("<u4")
        data = ids.tobytes() + pack(continuation.rows, self._dtype)
        offset = self._file.tell()
        self._file.write(data)
        lengths = len(continuation.prompt_ids), len(continuation.token_ids)
        return Record(self._shard, offset, len(data), zlib.crc32(data), *lengths, continuation.stopped)

    def _read_index(self) -> None:
        path = self.folder / _INDEX
        raw = path.read_bytes() if path.is_file() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        for text in whole.splitlines():
            try:
                values = json.loads(text)
                line = _Line(values["prompt"], [Record(**r) for r in values["records"]], values["dropped"])
                for record in line.records:
                    self.read(record)
            except (ValueError, KeyError, TypeError, OSError) as error:
                log.warning("%s: a prompt's continuations cannot be read and are asked for again (%s)", path, error)
            else:
                self._lines[line.prompt] = line

    def _open_last(self) -> tuple[int, BinaryIO]:
        """The shard to write to, without what the index does not know."""
        ends = [(r.shard, r.offset + r.size) for line in self._lines.values() for r in line.records]
        shard, end = max(ends, default=(0, 0))
        for path in self.folder.glob("shard-*.bin"):
            if int(path.stem[6:]) > shard:
                path.unlink()
        file = self._path(shard).open("ab")
        file.truncate(end)
        file.seek(end)
        return shard, file

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bin"

    def _bytes(self, record: Record) -> bytes:
        if record.shard not in self._descriptors:
            self._descriptors[record.shard] = os.open(self._path(record.shard), os.O_RDONLY)
        data = os.pread(self._descriptors[record.shard], record.size, record.offset)
        if len(data) != record.size or zlib.crc32(data) != record.crc:
            raise CorruptRowsError(f"{self._path(record.shard)}, byte {record.offset}: the checksum is wrong")
        return data
