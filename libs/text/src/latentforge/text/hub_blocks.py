"""Data sets of the Hugging Face hub, streamed: ``hub:OWNER/NAME``, ``hub:OWNER/NAME:CONFIG`` or ``…:CONFIG:SPLIT``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentforge.text.errors import TextError
from latentforge.text.line_blocks import RawBlock
from latentforge.text.parquet_blocks import chosen_columns, row_blocks

HUB = "hub:"


@dataclass(frozen=True)
class HubName:
    """A data set; a folder of this machine in the hub's layout is one, too."""

    name: str
    config: str | None
    split: str

    @staticmethod
    def of(text: str) -> "HubName":
        """
        Raises:
            TextError: there are too many parts, or no name.
        """
        parts = text.removeprefix(HUB).split(":")
        if len(parts) > 3 or not parts[0]:
            raise TextError(f"{text}: give hub:OWNER/NAME, hub:OWNER/NAME:CONFIG or hub:OWNER/NAME:CONFIG:SPLIT")
        config, split = [*parts[1:], "", ""][:2]
        return HubName(parts[0], config or None, split or "train")

    def __str__(self) -> str:
        return f"{HUB}{self.name}:{self.config or ''}:{self.split}"

    def revision(self) -> str:
        """What the data are now: a commit of the hub, or the sizes and times of a folder's files.

        Raises:
            TextError: the hub does not answer, or does not have it.
        """
        if Path(self.name).is_dir():
            files = sorted(p for p in Path(self.name).rglob("*") if p.is_file())
            stats = [(p.relative_to(self.name).as_posix(), p.stat()) for p in files]
            return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.name).sha)
        except Exception as error:  # of the network, the hub or its client: they have no class in common
            raise _unavailable(self, error) from None

    def blocks(self, revision: str, records: int, block_bytes: int, text_column: str | None) -> Iterator[RawBlock]:
        """Blocks of rows behind the first ``records`` of what :meth:`revision` named.

        Raises:
            TextError: ``datasets`` is not installed, the hub does not answer, or there is no such column.
        """
        try:
            from datasets import load_dataset
        except ImportError:
            raise TextError(
                f"{self}: data sets of the hub are read with the package datasets, which is not installed; "
                "pip install 'latentforge-trainer[hub]'"
            ) from None
        at = {} if Path(self.name).is_dir() else {"revision": revision}
        try:
            data = load_dataset(self.name, self.config, split=self.split, streaming=True, **at)
            names = data.column_names or list(next(iter(data), {}))
        except Exception as error:  # as above
            raise _unavailable(self, error) from None
        columns = chosen_columns(str(self), names, text_column)
        data = data.select_columns(columns).skip(records)
        size = 0

        def rows() -> Iterator[dict[str, Any] | None]:
            try:
                yield from data
            except Exception as error:  # as above
                raise _unavailable(self, error) from None

        for block in row_blocks(rows(), records, block_bytes, lambda row: 0):
            size += len(block.data)
            yield RawBlock(block.first, block.data, block.records, 0, size)


def _unavailable(name: HubName, error: Exception) -> TextError:
    why = str(error).strip().splitlines() or [type(error).__name__]
    return TextError(
        f"{name} is unavailable ({why[0]}); the hub must be reachable for a hub data set: download it, and give the "
        "files or their folder"
    )
