"""A checkpoint's files, read once, into memory, and checked there: what was checked is what is loaded.

A file that is mapped instead can be truncated under its reader, which kills it, or changed after it was checked.
"""

import hashlib
import os
import stat
from pathlib import Path

from latentforge.core.manifest import (
    LONGEST_MANIFEST,
    MANIFEST,
    CheckpointError,
    FileRecord,
    Manifest,
    parse_manifest,
    step_folder,
)

_PIECE = 2**20
# What file managers leave in every folder that they show; so do all names that begin with a dot.
_LITTER = {"Thumbs.db", "desktop.ini"}


class CheckpointFiles:
    """One checkpoint's folder and the files that its manifest names.

    Args:
        place: ``<root>/<run>/step-…``.
        anywhere: it may have any name, lack files, have others and consist of links, as copies and downloads do; what
            is read is checked all the same.

    Attributes:
        manifest: what the folder's manifest says.
        digest: sha256 of the manifest's bytes, in hex; with it all of the checkpoint's bytes are determined.

    Raises:
        CheckpointError: it is not finished, was moved, lacks files or has others.
        OSError: the folder cannot be read now.
    """

    def __init__(self, place: Path, *, anywhere: bool = False) -> None:
        self.place = place
        self._anywhere = anywhere
        if place.is_symlink() and not anywhere:
            raise CheckpointError(f"{place} is a symbolic link; put the folder itself there")
        content = _read_manifest(place)
        self.manifest = parse_manifest(content, place / MANIFEST)
        self.digest = hashlib.sha256(content).hexdigest()
        if not anywhere:
            _check_names(place, self.manifest)
            self._check_presence()
        self._unread = dict(self.manifest.files)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            CheckpointError: they are not those that were published, or there never were any of this name.
            OSError: the file cannot be read now.
        """
        if name not in self.manifest.files:
            raise CheckpointError(f"{self.place}: the manifest names no {name}; publish the checkpoint anew")
        return self._checked(name, self.manifest.files[name], keep=True)

    def read_folder(self, folder: str) -> dict[str, bytes]:
        """The bytes of every file in one of the checkpoint's folders, by its name there; raises as :meth:`read`."""
        prefix = f"{folder}/"
        return {n.removeprefix(prefix): self.read(n) for n in self.manifest.files if n.startswith(prefix)}

    def check_rest(self) -> None:
        """Checks what has not been read; raises as :meth:`read`."""
        for name, record in list(self._unread.items()):
            self._checked(name, record, keep=False)

    def _checked(self, name: str, record: FileRecord, *, keep: bool) -> bytes:
        try:
            content = _read_checked(self.place / name, record, keep=keep, follow=self._anywhere)
        except FileNotFoundError:
            raise CheckpointError(f"{self.place}: {name} is missing") from None
        self._unread.pop(name, None)
        return content

    def _check_presence(self) -> None:
        present = set(file_names(self.place)) - {MANIFEST}
        if missing := sorted(set(self.manifest.files) - present):
            raise CheckpointError(f"{self.place}: {missing[0]} is missing")
        if strange := sorted(present - set(self.manifest.files)):
            raise CheckpointError(f"{self.place}: {strange[0]!r} is not in its manifest; remove it, or publish anew")


def read_manifest(place: Path, *, anywhere: bool = False) -> Manifest:
    """A checkpoint's manifest.

    Args:
        place: the checkpoint's folder.
        anywhere: it may have any name, as copies and downloads have.

    Raises:
        CheckpointError: there is none, it is unreadable, or it belongs to another folder.
    """
    try:
        manifest = parse_manifest(_read_manifest(place), place / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{place / MANIFEST} cannot be read: {error}") from None
    if not anywhere:
        _check_names(place, manifest)
    return manifest


def verify_checkpoint(place: Path) -> Manifest:
    """Reads the manifest and checks size and sha256 of every file that it names.

    Raises:
        CheckpointError: something is missing, added, or not what was published.
        OSError: the folder cannot be read now.
    """
    files = CheckpointFiles(place)
    files.check_rest()
    return files.manifest


def file_names(place: Path) -> list[str]:
    """Names of the files in a checkpoint's folder, relative to it; what file managers leave there is passed over.

    Raises:
        CheckpointError: one is a symbolic link.
        OSError: the folder cannot be read.
    """
    found = []
    for folder, folders, names in os.walk(place, onerror=_raise):
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in [*folders, *names]:
            path = Path(folder, name)
            if path.is_symlink() and not is_litter(name):
                raise CheckpointError(
                    f"{place}: {path.relative_to(place)} is a symbolic link; put the file itself there"
                )
        found += [Path(folder, name).relative_to(place).as_posix() for name in names if not is_litter(name)]
    return sorted(found)


def is_litter(name: str) -> bool:
    """Whether a file of this name is none of a checkpoint's, wherever it lies."""
    return name.startswith(".") or name in _LITTER


def _raise(error: OSError) -> None:
    raise error


def _check_names(place: Path, manifest: Manifest) -> None:
    place = place.absolute()
    if place.name != step_folder(manifest.step):
        raise CheckpointError(
            f"{place / MANIFEST} says step {manifest.step}, which belongs in {step_folder(manifest.step)}/"
        )
    if place.parent.name != manifest.run:
        raise CheckpointError(
            f"{place / MANIFEST} says run {manifest.run!r}, but stands in {place.parent.name!r}: a checkpoint keeps "
            f"the name that its answers give; move it to {manifest.run}/"
        )


def _read_manifest(place: Path) -> bytes:
    path = place / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_MANIFEST + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{place} has no {MANIFEST}: it is not finished, or not a checkpoint") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; publish the checkpoint anew") from None
    if len(content) > LONGEST_MANIFEST:
        raise CheckpointError(f"{path} has more than {LONGEST_MANIFEST} bytes, which no manifest has")
    return content


def _read_checked(path: Path, record: FileRecord, *, keep: bool, follow: bool) -> bytes:
    """A file's bytes, or with ``keep`` unset none, when they are what the record says."""
    # Opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    with os.fdopen(os.open(path, flags), "rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        # Before memory is taken for it.
        _check_size(path, about.st_size, record)
        digest, pieces, left = hashlib.sha256(), list[bytes](), record.size
        try:
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    _check_size(path, record.size - left, record)
                digest.update(piece)
                left -= len(piece)
                if keep:
                    pieces.append(piece)
            content = b"".join(pieces)
        except MemoryError:
            raise CheckpointError(f"{path} has {record.size} bytes, for which there is no memory") from None
    if digest.hexdigest() != record.sha256:
        raise CheckpointError(f"{path} does not have the sha256 that its manifest says")
    return content


def _check_size(path: Path, size: int, record: FileRecord) -> None:
    if size != record.size:
        raise CheckpointError(f"{path} has {size} bytes, its manifest says {record.size}")
