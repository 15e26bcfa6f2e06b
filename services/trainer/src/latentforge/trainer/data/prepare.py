"""From what a user names to packed training and held-out data."""

import time
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.held_out import SplitSource, held_out_below, split_tail
from latentforge.text.packed import META, PackedData, PackedMeta
from latentforge.text.packing import pack
from latentforge.text.text_source import TextSource
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.sections import DataRecipe
from latentforge.trainer.data.sources import write_stdlib
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.interrupt import Interrupted

# A byte-level tokenizer makes no more tokens than there are bytes, and usually a third; so many fill a sequence.
_CHARACTERS_PER_TOKEN = 6
_LINE_EVERY_SECONDS = 10.0


def run_data(run: RunContext, data: Path | None, held_out: Path | None) -> tuple[PackedData, PackedData]:
    """Training and held-out data of a run; what has to be packed goes to runs/<run>/data/.

    Args:
        run: the run.
        data: what :meth:`TextSource.of` takes, a packed folder, or None for the standard library of the running Python.
        held_out: the same for validation; None takes the standard library's held-out files, 5 % of the documents (by
            hash, while they are read), or the last 5 % of the packed sequences.

    Raises:
        TrainerError: a file or folder is not what it should be, or too small.
        Interrupted: asked to stop; what was packed is kept.
    """
    folder = run.folder / "data"
    run.status.stage = "data"
    if data is not None and is_packed(data):
        train = PackedData(data)
        return split_tail(train) if held_out is None else (train, _of(run, held_out, "held-out"))
    if data is None:
        train_file, own_held_out = folder / "train.jsonl", folder / "held-out.jsonl"
        for file, split in ((train_file, "train"), (own_held_out, "held-out")):
            if not file.is_file():
                write_stdlib(file, split)  # type: ignore[arg-type]
        # These files are ours: whatever the user's data is like.
        held = _packed(run, {"held-out": TextSource.of(own_held_out)}) if held_out is None else None
        train = _packed(run, {"train": TextSource.of(train_file)})["train"]
        return train, held["held-out"] if held is not None else _of(run, held_out, "held-out")  # type: ignore[arg-type]
    if held_out is not None:
        packed_held_out = _of(run, held_out, "held-out")
        return _of(run, data, "train"), packed_held_out
    source = TextSource.of(data, run.recipe.data.text_column)
    try:
        below = held_out_below(
            source.documents((lambda error: None) if run.recipe.data.skip_bad else None),
            _CHARACTERS_PER_TOKEN * run.recipe.data.sequence_length,
        )
    except TextError as error:
        raise TextError(f"{data}: {error}") from None
    if (before := _divided_into_files(run, source, below)) is not None:
        return before
    both = _packed(run, {"train": source, "held-out": source}, below)
    return both["train"], both["held-out"]


def is_packed(data: Path) -> bool:
    """Whether a folder holds packed data, and not documents."""
    return (data / META).is_file()


def _divided_into_files(run: RunContext, source: TextSource, below: int) -> tuple[PackedData, PackedData] | None:
    """The data of a run that was begun when the held-out documents were still written to a file of their own.

    It is kept where it is what ``source`` gives, so that the run can resume; --fresh divides the data anew.
    """
    folder = run.folder / "data"
    files = {split: folder / f"{split}.jsonl" for split in ("train", "held-out")}
    for split, file in files.items():
        if not file.is_file() or not is_packed(folder / split) or PackedData(folder / split).meta.source != file.name:
            return None
        ours = SplitSource(source, split, below, run.recipe.data.skip_bad).documents()  # type: ignore[arg-type]
        pairs = zip_longest(ours, TextSource.of(file).documents())
        if any(a is None or b is None or a.content != b.content for a, b in pairs):
            return None
    train, held_out = (_packed(run, {split: TextSource.of(file)})[split] for split, file in files.items())
    return train, held_out


def _of(run: RunContext, data: Path, split: str) -> PackedData:
    if is_packed(data):
        return PackedData(data)
    return _packed(run, {split: TextSource.of(data, run.recipe.data.text_column)})[split]


def _packed(run: RunContext, sources: Mapping[str, TextSource], below: int | None = None) -> dict[str, PackedData]:
    outs = {split: run.folder / "data" / split for split in sources}
    pack_with_bar(
        next(iter(sources.values())),
        outs,
        run.tokenizer,
        run.recipe.data,
        chunk_size=run.recipe.chunk_size,
        below=below,
        console=run.console,
        stop=run.stop,
    )
    return {
        split: PackedData(out, SplitSource(sources[split], split, below, run.recipe.data.skip_bad))  # type: ignore[arg-type]
        for split, out in outs.items()
    }


def pack_with_bar(
    source: TextSource,
    outs: Mapping[str, Path],
    tokenizer: TextTokenizer,
    data: DataRecipe,
    *,
    chunk_size: int,
    console: Console,
    below: int | None = None,
    processes: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """:func:`latentforge.text.packing.pack` with a bar on a terminal, lines elsewhere, and one about what came out.

    Raises:
        TextError: as :func:`pack`.
        Interrupted: asked to stop; what was done is kept.
    """

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    for path in source.passed_over:
        say(f"{path} is passed over: no kind of data that is known")
    names = " and ".join(outs)
    columns = (TextColumn(f"packing {names}"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    total = source.num_bytes
    said = time.monotonic()
    # When, and behind which byte: what was packed before a resume, and the time that hashing took, tell no speed.
    began: tuple[float, int] | None = None
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def show(read: int) -> None:
            nonlocal said, began
            bar.update(task, completed=read)
            now = time.monotonic()
            began = began or (now, read)
            if console.is_terminal or now - said < _LINE_EVERY_SECONDS:
                return
            said = now
            of = eta = ""
            if total is not None:
                of = f"/{total / 1e6:,.0f}"
                if read > began[1]:
                    eta = f"  eta {(total - read) * (now - began[0]) / (read - began[1]):,.0f} s"
            say(f"packing {names} {read / 1e6:,.0f}{of} MB{eta}")

        try:
            metas = pack(
                source,
                outs,
                tokenizer,
                sequence_length=data.sequence_length,
                chunk_size=chunk_size,
                held_out_below=below,
                skip_bad=data.skip_bad,
                processes=processes,
                on_read=show,
                stop=stop,
            )
        except PackingStoppedError:
            raise Interrupted from None
    for split, meta in metas.items():
        say(f"packed {split}: {_described(meta)}")


def _described(meta: PackedMeta) -> str:
    notes = [
        f"{meta.num_sequences} sequences of {meta.sequence_length} tokens from {meta.num_documents} documents",
        f"{meta.num_dropped_tokens} tokens at the end dropped",
    ]
    if meta.num_empty_documents:
        notes.append(f"{meta.num_empty_documents} empty documents left out")
    if meta.num_bad_lines:
        notes.append(f"{meta.num_bad_lines} bad lines of the data skipped")
    if meta.num_forced_cuts:
        notes.append(f"{meta.num_forced_cuts} cuts in texts without blanks, where tokens may be others")
    return ", ".join(notes)
