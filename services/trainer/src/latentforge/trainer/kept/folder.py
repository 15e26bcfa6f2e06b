"""Reading a folder of kept rows: found by content, read a few sequences at a time, never all of it."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from latentforge.trainer.data.sequence_hash import sequence_hash
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.kept.manifest import KeptManifest, KeptSplit
from latentforge.trainer.kept.table import KeptSequence, read_group

# Their footers are in memory, some hundred kB each.
_OPEN_FILES = 64
# Sequences come in a random order: what is kept serves those that stand beside one another and little else.
_GROUPS = 8
_MOST_NAMED = 5


class KeptFolder:
    """A whole folder of kept rows; of one thread.

    In memory are 16 bytes for each sequence; rows are read from memory-mapped files when they are asked for.

    Attributes:
        manifest: the folder's.

    Raises:
        TrainerError: it is no such folder, or files of it are missing (which sequences) or unreadable; from every
            method.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = KeptManifest.read(folder)
        self._paths = [self.manifest.path(folder, *file) for file in self.manifest.files()]
        if missing := [file for file, p in zip(self.manifest.files(), self._paths, strict=True) if not p.is_file()]:
            raise TrainerError(_incomplete(folder, self.manifest, missing))
        self._open: Callable[[int], Any] = lru_cache(maxsize=_OPEN_FILES)(self._opened)
        self._group: Callable[[int, int], list[KeptSequence]] = lru_cache(maxsize=_GROUPS)(self._read_group)
        hashes = [self._hashes(file) for file in range(len(self._paths))]
        lengths = [len(h) for h in hashes]
        keys = np.concatenate([np.zeros(0, np.uint64), *hashes])
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        files = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
        lines = np.concatenate([np.zeros(0, np.uint64), *(np.arange(n, dtype=np.uint64) for n in lengths)])
        self._places = ((files << np.uint64(32)) | lines)[order]

    def __len__(self) -> int:
        """Sequences."""
        return len(self._keys)

    def __contains__(self, ids: NDArray[np.integer]) -> bool:
        """Whether there probably is a sequence of these ids; 64 bits of its hash are looked at."""
        return self._candidates(ids).size > 0

    def find(self, ids: NDArray[np.integer]) -> KeptSequence | None:
        """The sequence of these ids [L]; None where there is none."""
        for place in self._candidates(ids).tolist():
            found = self.at(place >> 32, place & 0xFFFFFFFF)
            if np.array_equal(found.ids, ids):
                return found
        return None

    def digest(self) -> str:
        """Tells this folder from others: by manifest and by its files' names and sizes."""
        about = self.manifest.about()
        # Runs that were begun with a folder of before there was a choice know it by this.
        if not about["mask_documents"]:
            del about["mask_documents"]
        digest = hashlib.sha256(str(sorted(about.items())).encode())
        for path in self._paths:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _candidates(self, ids: NDArray[np.integer]) -> NDArray[np.uint64]:
        key = np.frombuffer(sequence_hash(ids)[:8], "<u8")[0]
        first, stop = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
        found: NDArray[np.uint64] = self._places[first:stop]
        return found

    def lines(self, file: int) -> list[tuple[int, int, int, int]]:
        """Of every sequence of the ``file``-th file of the manifest: number, place, first position, length."""
        names = ["sequence", "place", "first_position", "ids"]
        table = self._columns(file, names)
        *plain, ids = (table.column(name).combine_chunks() for name in names)
        found: list[tuple[int, int, int, int]] = list(
            zip(*(column.to_pylist() for column in plain), ids.value_lengths().to_pylist(), strict=True)
        )
        return found

    def at(self, file: int, line: int) -> KeptSequence:
        """The ``line``-th sequence of the ``file``-th file of the manifest."""
        per_group: int = self._open(file).metadata.row_group(0).num_rows
        group, within = divmod(line, per_group)
        return self._group(file, group)[within]

    def _read_group(self, file: int, group: int) -> list[KeptSequence]:
        try:
            return read_group(self._open(file), group, self.manifest.top_k)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from None

    def _opened(self, file: int) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._paths[file], memory_map=True, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from None

    def _hashes(self, file: int) -> NDArray[np.uint64]:
        """The first 8 bytes of every sequence's hash."""
        column = self._columns(file, ["hash"]).column("hash")
        return np.frombuffer(b"".join(value[:8] for value in column.to_pylist()), "<u8")

    def _columns(self, file: int, names: list[str]) -> pa.Table:
        try:
            return self._open(file).read(columns=names)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(file, error) from None

    def _unreadable(self, file: int, error: Exception) -> TrainerError:
        return TrainerError(
            f"{self._paths[file]} cannot be read ({error}): delete it, and run again what made the folder: "
            f"{self.manifest.made.command}"
        )


def _incomplete(folder: Path, manifest: KeptManifest, missing: list[tuple[KeptSplit, int]]) -> str:
    parts = []
    for split, number in missing[:_MOST_NAMED]:
        held = manifest.splits[split].sequences(number)
        parts.append(f"{split} {held.start}–{held.stop - 1} ({manifest.path(folder, split, number).name})")
    more = f" and {len(missing) - _MOST_NAMED} more files" if len(missing) > _MOST_NAMED else ""
    return (
        f"{folder} is not whole: {len(missing)} of {len(manifest.files())} files are missing, with the sequences "
        f"{', '.join(parts)}{more}. Run the same command again in which it was made, with every --shard: "
        f"{manifest.made.command}"
    )
