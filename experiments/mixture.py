"""Text of several files of documents in one, less some documents that are kept apart to choose settings on."""

from collections.abc import Sequence
from pathlib import Path

from latentforge.core.files import replacing

# What is trained on, and what settings are chosen on: names of texts.
MIXTURE, CHOICE = "mixture-train", "choice"
# One document of so many is kept apart.
APART = 20


def write_mixture(sources: Sequence[Path], train: Path, choice: Path, max_bytes: int | None = None) -> None:
    """Writes the documents of JSONL files: every :data:`APART`-th to ``choice``, the others to ``train``.

    Args:
        sources: to read in this order, one document a line.
        train, choice: the files to write; each is whole or not there.
        max_bytes: of all documents at most; None takes all.
    """
    size = number = 0
    with (
        replacing(train) as new_train,
        replacing(choice) as new_choice,
        new_train.open("wb") as train_file,
        new_choice.open("wb") as choice_file,
    ):
        for source in sources:
            with source.open("rb") as lines:
                for line in lines:
                    size += len(line)
                    if max_bytes is not None and size > max_bytes:
                        return
                    number += 1
                    (train_file if number % APART else choice_file).write(line)
