"""The one corpus that a machine without a network always has: Python's standard library.

Teacher, autoencoder and student must agree on which files nobody trains on, so the split is a function of a
file's name alone and lives here. So does what is cut out of the others because held-out files have it too.
"""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentforge.text.held_out import Split, split_of
from latentforge.trainer.data.shared_words import SharedWords

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
_GENERATED = {"encodings", "pydoc_data"}
_TESTS = {"test", "tests", "idle_test"}
# So many equal words are a copy or a phrase that everybody writes, and what a model remembers of either is no measure.
# Of the training tokens that lie in a run of 16 tokens which a held-out file has too (0.53 %; the shipped teacher's
# tokenizer, Python 3.11), 12 words find 88 % and cut 1.4 % of all; 16 words 75 % and 0.8 %, 8 words 98 % and 5.7 %.
SHARED_WORDS = 12


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
    """Yields :func:`whole_files`, those of "train" less every line that shares :data:`SHARED_WORDS` words in a row with
    a held-out file. What remains of a file is one text; files of which nothing remains are left out.
    """
    if split == "held-out":
        yield from whole_files(root, split, tests=tests)
        return
    held_out = SharedWords((file.text for file in whole_files(root, "held-out")), SHARED_WORDS)
    for file in whole_files(root, split, tests=tests):
        text = held_out.cut_from(file.text)
        if text.strip():
            yield SourceFile(file.name, text)


def whole_files(root: Path, split: Split, *, tests: bool = False) -> Iterator[SourceFile]:
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
