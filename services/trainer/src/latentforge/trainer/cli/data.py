"""Commands that make data: JSONL of sources, a tokenizer, packed sequences."""

from pathlib import Path
from typing import Annotated, cast

import typer

from latentforge.trainer.cli.opening import user_errors
from latentforge.trainer.cli.options import (
    BosOption,
    EosOption,
    PadOption,
    SkipBadOption,
    TextColumnOption,
    TokenizerOption,
)
from latentforge.trainer.data.prompts import Split

data_app = typer.Typer(no_args_is_help=True, help="Makes JSONL data.")


SplitOption = Annotated[str, typer.Option("--split", help="train or held-out.")]


@data_app.command("stdlib")
def data_stdlib(
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    split: SplitOption = "train",
) -> None:
    """Writes the running Python's standard library as JSONL, {"text", "name"} per line."""
    from latentforge.trainer.data.sources import write_stdlib

    with user_errors():
        typer.echo(f"{out}: {write_stdlib(out, _split(split))} documents")


@data_app.command("packages")
def data_packages(
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    split: SplitOption = "train",
    max_mb: Annotated[
        float | None,
        typer.Option(
            "--max-mb",
            help="Megabytes (10^6 bytes) of text at most; a larger choice begins with a smaller one.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the files, which mixes the packages.")] = 0,
) -> None:
    """Writes the installed packages' Python files as JSONL, {"text", "name"} per line.

    networkx, jinja2 and anyio are the held-out split.

    Left out: test suites, generated files, tables, copies, files above 256 KiB, and what shares lines with the other
    split.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from latentforge.trainer.data.packages import Packages
    from latentforge.trainer.data.sources import write_packages

    if max_mb is not None and max_mb <= 0:
        raise typer.BadParameter(f"{max_mb:g} is not above 0", param_hint="--max-mb")
    chosen = _split(split)
    max_bytes = None if max_mb is None else int(max_mb * 1e6)
    console = Console(stderr=True)
    columns = (TextColumn(f"packages {split}"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with user_errors():
        packages = Packages()
        candidates = packages.candidates(chosen, seed)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=sum(c.num_bytes for c in candidates))
            written = write_packages(
                out, packages, chosen, candidates, max_bytes=max_bytes, on_bytes=lambda n: bar.advance(task, n)
            )
        typer.echo(f"{out}: {written.num_documents} documents, {written.num_bytes / 1e6:.1f} MB of text")
        if max_mb is not None and not written.cut:
            typer.echo(f"warning: --max-mb is {max_mb:g}, but the packages hold no more than that", err=True)


@data_app.command("prompts")
def data_prompts(
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    num: Annotated[int, typer.Option("--num", min=1, help="Prompts at most.")] = 12_000,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice.")] = 0,
) -> None:
    """Writes prompts for a teacher that writes, as JSONL: questions, and beginnings of documentation and of code.

    In equal parts: everyday questions, sections and docstrings of the installed packages, their code, and questions
    about it. Of networkx, jinja2 and anyio there are none.
    """
    from latentforge.trainer.data.packages import Packages
    from latentforge.trainer.data.writing_prompts import write_prompts

    with user_errors():
        counts = write_prompts(out, Packages(), num, seed)
        typer.echo(f"{out}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))


def train_tokenizer(
    data: Annotated[Path, typer.Option("--data", help="A file, folder or glob of JSONL (.gz, .zst) or Parquet.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer's folder; it must not exist.")],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", help="Ids, 4 special tokens and 256 bytes among them.")
    ] = 32768,
) -> None:
    """Trains a byte-level BPE tokenizer like the shipped teacher's, of another size."""
    from rich.console import Console

    from latentforge.core.files import replacing
    from latentforge.text.bpe import train_bpe
    from latentforge.text.text_source import read_documents
    from latentforge.trainer.errors import TrainerError

    with user_errors():
        if out.exists():
            raise TrainerError(f"--out: {out} exists; give another folder")
        # What cannot be written is said before the training, not after.
        out.parent.mkdir(parents=True, exist_ok=True)
        texts = (document.words for document in read_documents(data))
        trained = train_bpe(texts, vocab_size, show_progress=Console(stderr=True).is_terminal)
        with replacing(out, keep=True) as temporary:
            trained.save_pretrained(temporary)
        typer.echo(f"{out}: {len(trained)} ids")


def pack(
    data: Annotated[
        Path, typer.Argument(help="A file, folder or glob of JSONL (.gz, .zst) or Parquet, or hub:OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The packed folder to make.")],
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens per sequence, a multiple of K.")
    ] = 2048,
    k: Annotated[int, typer.Option("--k", help="Tokens per chunk, K.")] = 8,
    split: Annotated[str, typer.Option("--split", help="Recorded in the folder.")] = "train",
    tokenizer: TokenizerOption = None,
    eos_id: EosOption = None,
    pad_id: PadOption = None,
    bos: BosOption = None,
    text_column: TextColumnOption = None,
    skip_bad: SkipBadOption = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=0, help="That tokenise.", show_default="one a core; none for small data"),
    ] = None,
) -> None:
    """Packs documents into memory-mapped sequences of token ids. Stopped or killed, the same command resumes."""
    from rich.console import Console

    from latentforge.core.settings import load_settings
    from latentforge.text.text_source import TextSource
    from latentforge.trainer.config.sections import DataRecipe
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.data.prepare import pack_with_bar
    from latentforge.trainer.run.interrupt import StopRequest
    from latentforge.trainer.run.tokenizer import teachers_tokenizer

    with user_errors(), StopRequest() as stop:
        settings = load_settings(TrainerSettings, tokenizer_path=tokenizer)
        text_tokenizer = teachers_tokenizer(settings, eos_id=eos_id, pad_id=pad_id, bos=bos)
        pack_with_bar(
            TextSource.of(data, text_column),
            {split: out},
            text_tokenizer,
            DataRecipe(sequence_length=sequence_length, skip_bad=bool(skip_bad)),
            chunk_size=k,
            processes=processes,
            console=Console(stderr=True),
            stop=stop,
        )
        typer.echo(str(out))


def _split(name: str) -> Split:
    if name not in ("train", "held-out"):
        raise typer.BadParameter(f"{name!r} is not train or held-out", param_hint="--split")
    return cast(Split, name)
