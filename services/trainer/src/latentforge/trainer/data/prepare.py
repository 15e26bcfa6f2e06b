"""From what a user names to packed training and held-out data."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from latentforge.text.held_out import split_held_out, split_tail
from latentforge.text.packed import PackedData, PackedMeta
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.data.sources import write_stdlib
from latentforge.trainer.run.context import RunContext

# A byte-level tokenizer makes no more tokens than there are bytes, and usually a third; so many fill a sequence.
_CHARACTERS_PER_TOKEN = 6


def run_data(run: RunContext, data: Path | None, held_out: Path | None) -> tuple[PackedData, PackedData]:
    """Training and held-out data of a run; what has to be packed goes to runs/<run>/data/.

    Args:
        run: the run.
        data: a JSONL file, a packed folder, or None for the standard library of the running Python.
        held_out: the same for validation; None takes the standard library's held-out files, 5 % of the file's
            documents (by hash), or the last 5 % of the packed sequences.

    Raises:
        TrainerError: a file or folder is not what it should be, or too small.
    """
    folder = run.folder / "data"
    run.status.stage = "data"
    if data is not None and data.is_dir():
        train = PackedData(data)
        if held_out is None:
            return split_tail(train)
        return train, PackedData(held_out) if held_out.is_dir() else _pack(run, held_out, "held-out")
    if data is None:
        train_file, own_held_out = folder / "train.jsonl", folder / "held-out.jsonl"
        for file, split in ((train_file, "train"), (own_held_out, "held-out")):
            if not file.is_file():
                write_stdlib(file, split)  # type: ignore[arg-type]
    elif held_out is None:
        train_file, own_held_out = folder / "train.jsonl", folder / "held-out.jsonl"
        min_characters = _CHARACTERS_PER_TOKEN * run.recipe.data.sequence_length
        split_held_out(data, train_file, own_held_out, min_characters=min_characters)
    else:
        train_file, own_held_out = data, held_out
    held_out = held_out or own_held_out
    packed_held_out = PackedData(held_out) if held_out.is_dir() else _pack(run, held_out, "held-out")
    return _pack(run, train_file, "train"), packed_held_out


def _pack(run: RunContext, source: Path, split: str) -> PackedData:
    out = run.folder / "data" / split
    pack_with_bar(
        source,
        out,
        run.tokenizer,
        sequence_length=run.recipe.data.sequence_length,
        chunk_size=run.recipe.chunk_size,
        split=split,
        console=run.console,
    )
    return PackedData(out, source)


def pack_with_bar(
    source: Path,
    out: Path,
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    chunk_size: int,
    split: str,
    console: Console,
) -> PackedMeta:
    """:func:`pack_jsonl` with a bar on a terminal, and a line about what came out."""
    columns = (TextColumn(f"packing {split}"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=source.stat().st_size if source.is_file() else None)
        meta = pack_jsonl(
            source,
            out,
            tokenizer,
            sequence_length=sequence_length,
            chunk_size=chunk_size,
            split=split,
            on_bytes=lambda n: bar.advance(task, n),
        )
    empty = f", {meta.num_empty_documents} empty documents left out" if meta.num_empty_documents else ""
    console.print(
        f"packed {split}: {meta.num_sequences} sequences of {meta.sequence_length} tokens from {meta.num_documents} "
        f"documents, {meta.num_dropped_tokens} tokens at the end dropped{empty}",
        soft_wrap=True,
        highlight=False,
    )
    return meta
