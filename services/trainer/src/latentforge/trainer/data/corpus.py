"""The one corpus that a machine without a network always has: Python's standard library.

Teacher, autoencoder and student must agree on which files nobody trains on, so the split is a function of a
file's name alone and lives here.
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentforge.text.held_out import Split, split_of

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
_GENERATED = {"encodings", "pydoc_data"}
_TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class SourceFile:
    """One source file: ``name`` is its POSIX path relative to the corpus root, ``text`` its decoded contents."""

    name: str
    text: str

    @property
    def is_test(self) -> bool:
        return not _TESTS.isdisjoint(Path(self.name).parts)


def stdlib_root() -> Path:
    """The standard library of the running Python."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(root: Path, split: Split, *, tests: bool = False) -> Iterator[SourceFile]:
    """Yields the UTF-8 ``*.py`` files under ``root`` that belong to ``split``, sorted by name.

    Files of installed packages and generated tables are left out, and so are empty files and files in another
    encoding. Test suites are left out unless ``tests`` is true: distributions ship them or not, and a corpus must not
    depend on that.
    """
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not (_NOT_LIBRARY | _GENERATED).isdisjoint(relative.parts):
            continue
        name = relative.as_posix()
        if split_of(name) != split:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        file = SourceFile(name, text)
        if text.strip() and (tests or not file.is_test):
            yield file
