"""Python sources of this machine as JSON lines: the standard library's, and those of installed packages."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentforge.text.documents import EXPECTED, write_lines
from latentforge.text.held_out import Split
from latentforge.trainer.data.corpus import source_files, stdlib_root
from latentforge.trainer.data.packages import PackageFile, Packages
from latentforge.trainer.errors import TrainerError


def write_stdlib(out: Path, split: Split) -> int:
    """Writes one split of the running Python's standard library as JSONL; returns the number of documents."""
    lines = [json.dumps({"text": f.text, "name": f.name}) for f in source_files(stdlib_root(), split)]
    if not lines:
        raise TrainerError(f"{stdlib_root()} holds no Python sources; give a JSONL file with {EXPECTED}")
    write_lines(out, lines)
    return len(lines)


@dataclass(frozen=True)
class WrittenSources:
    """What came of a file: ``num_bytes`` of text in UTF-8; ``cut`` where more was there than was allowed."""

    num_documents: int
    num_bytes: int
    cut: bool


def write_packages(
    out: Path,
    packages: Packages,
    split: Split,
    candidates: Sequence[PackageFile],
    *,
    max_bytes: int | None = None,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> WrittenSources:
    """Writes installed packages' files as JSONL, in the candidates' order.

    Args:
        out: the file, which appears whole or not at all.
        packages: where the candidates are from.
        split: theirs.
        candidates: what to write, less what :meth:`Packages.files` leaves out.
        max_bytes: ends before the text, in UTF-8, is larger; None writes all.
        on_bytes: told the size of each candidate that was read.

    Raises:
        TrainerError: nothing remains to be written.
    """
    num_documents = num_bytes = 0
    cut = False

    def lines() -> Iterator[str]:
        nonlocal num_documents, num_bytes, cut
        for file in packages.files(split, candidates, on_bytes=on_bytes):
            size = len(file.text.encode())
            if cut := max_bytes is not None and num_bytes + size > max_bytes:
                break
            num_documents, num_bytes = num_documents + 1, num_bytes + size
            yield json.dumps({"text": file.text, "name": file.name})
        if not num_documents:
            limit = "" if max_bytes is None else f" within {max_bytes / 1e6:g} MB"
            raise TrainerError(f"no Python file of the {split} split{limit} in {', '.join(map(str, packages.roots))}")

    write_lines(out, lines())
    return WrittenSources(num_documents, num_bytes, cut)
