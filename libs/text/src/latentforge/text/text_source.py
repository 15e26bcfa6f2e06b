"""What a user names as data: a file, a folder, a glob, or a data set of the hub; read in order, from any place on."""

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latentforge.text.documents import EXPECTED, Document, parse_document
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.hub_blocks import HUB, HubName
from latentforge.text.line_blocks import COMPRESSIONS, RawBlock, line_blocks
from latentforge.text.parquet_blocks import parquet_blocks

# Of a folder the files with these endings are taken, those of lines with a compression's behind it, too.
LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
_BLOCK_BYTES = 2**20
_HASHED_AT_ONCE = 2**22

Stamp = tuple[int, int, str]
"""A file's size in bytes, when it was changed in ns, and its sha256."""


@dataclass(frozen=True)
class Position:
    """Where reading resumes: in which file, behind how many of its records, and behind how many decompressed bytes."""

    file: int = 0
    records: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Block:
    """Records of one file, and where reading resumes behind them.

    Attributes:
        name: the file's.
        raw: the records.
        end: behind them.
        read: bytes of all files, as they are on the disk, that were read by then.
    """

    name: str
    raw: RawBlock
    end: Position
    read: int


@dataclass(frozen=True)
class TextSource:
    """Documents of files or of a hub data set.

    Attributes:
        name: as the user gave it.
        files: in the order in which they are read; none of a hub data set.
        hub: the data set.
        text_column: see :func:`parse_document`.
        passed_over: files of a folder that are of no known kind.
    """

    name: str
    files: tuple[Path, ...]
    hub: HubName | None = None
    text_column: str | None = None
    passed_over: tuple[Path, ...] = ()

    @staticmethod
    def of(name: Path | str, text_column: str | None = None) -> "TextSource":
        """Finds what a user named.

        Raises:
            TextError: nothing is there; says what to give.
        """
        text = str(name)
        if text.startswith(HUB):
            return TextSource(text, (), HubName.of(text), text_column)
        path = Path(text)
        if path.is_dir():
            every = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
            files = [p for p in every if _is_known(p)]
            if not files:
                raise TextError(f"{path} holds no {', '.join(LINES)} (.gz, .zst) or {PARQUET}; give files of documents")
            return TextSource(text, tuple(files), None, text_column, tuple(p for p in every if not _is_known(p)))
        if not path.exists() and glob.has_magic(text):
            found = glob.glob(text, recursive=True)  # noqa: PTH207 - of absolute names, too
            files = [p for p in sorted(map(Path, found)) if p.is_file()]
            if not files:
                raise TextError(f"{text} names no file; give a file with {EXPECTED}")
            return TextSource(text, tuple(files), None, text_column)
        if not path.is_file():
            raise TextError(f"{path} cannot be read (No such file or directory); give a file with {EXPECTED}")
        return TextSource(text, (path,), None, text_column)

    @property
    def num_bytes(self) -> int | None:
        """Of all files as they are on the disk; None where that is unknown."""
        return None if self.hub else sum(path.stat().st_size for path in self.files)

    def stamps(
        self, known: Mapping[str, Stamp] | None = None, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Stamp]:
        """Every file's stamp; a file whose size and time are those of a known stamp is not read again.

        Raises:
            PackingStoppedError: ``stop`` said so.
            TextError: a file cannot be read.
        """
        if self.hub:
            return {}
        found: dict[str, Stamp] = {}
        for path in self.files:
            try:
                stat = path.stat()
                before = (known or {}).get(str(path))
                if before is not None and tuple(before[:2]) == (stat.st_size, stat.st_mtime_ns):
                    found[str(path)] = (stat.st_size, stat.st_mtime_ns, before[2])
                else:
                    found[str(path)] = (stat.st_size, stat.st_mtime_ns, _sha256(path, stop))
            except OSError as error:
                raise TextError(f"{path} cannot be read ({error.strerror})") from None
        return found

    def sha256(self, stamps: Mapping[str, Stamp]) -> str:
        """Tells these data from others: a single file's own hash, or one over the names and hashes of all."""
        if len(self.files) == 1:
            return stamps[str(self.files[0])][2]
        if self.hub:
            return hashlib.sha256(f"{self.hub}\0{self._revision}".encode()).hexdigest()
        root = Path(self.name) if Path(self.name).is_dir() else None
        names = [p.relative_to(root).as_posix() if root else p.name for p in self.files]
        lines = [f"{name}\0{stamps[str(p)][2]}\n" for name, p in zip(names, self.files, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def blocks(self, start: Position | None = None, block_bytes: int = _BLOCK_BYTES) -> Iterator[Block]:
        """Records in order, about ``block_bytes`` of them at a time.

        Raises:
            TextError: a file cannot be read.
        """
        at = start or Position()
        if self.hub:
            raws = self.hub.blocks(self._revision, at.records, block_bytes, self.text_column)
            yield from (Block(str(self.hub), raw, Position(0, raw.records), raw.read) for raw in raws)
            return
        before = sum(path.stat().st_size for path in self.files[: at.file])
        for number, path in enumerate(self.files[at.file :], at.file):
            begin = at if number == at.file else Position(number)
            if path.suffix == PARQUET:
                raws = parquet_blocks(path, begin.records, block_bytes, self.text_column)
            else:
                raws = line_blocks(path, begin.records, begin.offset, block_bytes)
            yield from (
                Block(str(path), raw, Position(number, raw.records, raw.offset), before + raw.read) for raw in raws
            )
            before += path.stat().st_size

    def documents(self, on_bad: Callable[[TextError], None] | None = None) -> Iterator[Document]:
        """Every document; blank lines are passed over.

        Args:
            on_bad: told of every line that is not as expected, which is passed over then; None raises.

        Raises:
            TextError: such a line, or a file that cannot be read.
        """
        for block in self.blocks():
            yield from block_documents(block.name, block.raw, self.text_column, on_bad)

    @cached_property
    def _revision(self) -> str:
        # Asked once: what the hub has may change while it is read.
        assert self.hub is not None
        return self.hub.revision()


def block_documents(
    name: str, raw: RawBlock, text_column: str | None, on_bad: Callable[[TextError], None] | None
) -> Iterator[Document]:
    """The documents of a block, see :meth:`TextSource.documents`."""

    def bad(error: TextError) -> None:
        if on_bad is None:
            raise error
        on_bad(error)

    if raw.fault is not None:
        bad(TextError(f"{name}:{raw.first}: {raw.fault}"))
        return
    start = 0
    number = raw.first
    while start < len(raw.data):
        stop = raw.data.find(b"\n", start) + 1 or len(raw.data)
        line = raw.data[start:stop]
        if line.strip():
            try:
                yield parse_document(line, f"{name}:{number}", text_column)
            except TextError as error:
                bad(error)
        start, number = stop, number + 1


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of what ``path`` names; see :meth:`TextSource.documents`."""
    yield from TextSource.of(path).documents()


def _is_known(path: Path) -> bool:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
        return bool(suffixes) and suffixes[-1] in LINES
    return bool(suffixes) and suffixes[-1] in (*LINES, PARQUET)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _sha256(path: Path, stop: Callable[[], bool]) -> str:
    digest: Any = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_HASHED_AT_ONCE):
            digest.update(data)
            if stop():
                raise PackingStoppedError
    return str(digest.hexdigest())
