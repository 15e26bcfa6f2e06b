"""Where packed folders are made and put in their places: one process at a time, and nothing is left half done."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentforge.core.files import fsync, remove
from latentforge.text.errors import TextError
from latentforge.text.packed import PackedData, PackedMeta
from latentforge.text.packed_writer import cut_to_sequences
from latentforge.text.text_source import Stamp

STAMPS = "sources.json"
PROGRESS = "progress.json"


def take_finished(work: Path, outs: Mapping[str, Path], wanted: dict[str, Any]) -> None:
    """Moves finished folders to their places; a kill in between leaves the others to the next call."""
    if read_json(work / PROGRESS).get("finished") != wanted:
        return
    # The held-out part first: who finds the training data finds the other, too.
    for split, out in sorted(outs.items()):
        if (work / split).is_dir():
            # Only now: a packing that ends before this line is resumed with all that was written.
            cut_to_sequences(work / split)
            remove(out)
            (work / split).replace(out)
            fsync(out.parent)
    remove(work / PROGRESS)


def work_of(outs: Mapping[str, Path]) -> Path:
    """Where folders are made: beside them, so that they can be renamed to their places."""
    return next(iter(outs.values())).parent / f".{'+'.join(out.name for out in outs.values())}.packing"


@contextmanager
def work_folder(outs: Mapping[str, Path]) -> Iterator[Path]:
    """A folder beside the outs, for this process alone, which is gone afterwards unless there is something to resume.

    Raises:
        TextError: another process packs there.
    """
    work = work_of(outs)
    existed = next(p for p in work.parents if p.exists())
    work.mkdir(parents=True, exist_ok=True)
    # A lock goes with its process, however that ends.
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TextError(
                f"{work.parent} is being packed into by another process; wait for it, or give another --out"
            ) from None
        try:
            yield work
        finally:
            if not (work / PROGRESS).is_file():
                remove(work)
                for parent in work.parents:
                    if parent == existed or any(parent.iterdir()):
                        break
                    parent.rmdir()
    finally:
        os.close(lock)


def known_stamps(folders: list[Path]) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    for folder in folders:
        found |= read_json(folder / STAMPS)
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def same_packings(outs: Mapping[str, Path], wanted: dict[str, Any], skip_bad: bool) -> dict[str, PackedMeta] | None:
    found = {}
    for split, out in outs.items():
        try:
            meta = PackedData(out).meta
        except TextError:
            return None
        if not {**wanted, "split": split}.items() <= meta.model_dump().items() or (meta.num_bad_lines and not skip_bad):
            return None
        found[split] = meta
    return found
