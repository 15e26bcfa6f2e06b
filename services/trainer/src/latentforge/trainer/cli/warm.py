"""The command ``trainer warm``: has a gateway score a data set before training asks for it."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentforge.trainer.cli.opening import user_errors
from latentforge.trainer.cli.options import GatewayOption, TokenizerOption

if TYPE_CHECKING:
    from latentforge.trainer.teacher.warm import Warmed


def warm(
    data: Annotated[
        Path, typer.Argument(help="A file, folder or glob of JSONL (.gz, .zst) or Parquet, or a packed folder.")
    ],
    gateway: GatewayOption = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Entries per row; they serve fewer, too.")] = 20,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=2, help="JSONL: longest sequence in tokens.", show_default="the teacher's longest"
        ),
    ] = None,
    float32: Annotated[bool, typer.Option("--float32", help="Keep log-probabilities in float32.")] = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Scores a data set against a running gateway, so that its cache has it. What it has already is passed over."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from latentforge.core.settings import load_settings
    from latentforge.teacher_client.client import TeacherClient
    from latentforge.trainer.config.settings import TrainerSettings
    from latentforge.trainer.errors import TrainerError
    from latentforge.trainer.run.tokenizer import teachers_tokenizer
    from latentforge.trainer.teacher.warm import warm as warm_cache

    with user_errors():
        settings = load_settings(TrainerSettings, gateway_target=gateway, tokenizer_path=tokenizer)
        text_tokenizer = teachers_tokenizer(settings)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("asking the gateway", total=None)

            def show(done: int, total: int, so_far: "Warmed") -> None:
                text = f"{so_far.hits:,} hits, {so_far.computed:,} computed"
                progress.update(bar, completed=done, total=total, description=text)

            async def run() -> "Warmed":
                async with TeacherClient(
                    settings.gateway_target, api_key=settings.gateway_api_key, tls_ca=settings.gateway_tls_ca
                ) as client:
                    return await warm_cache(
                        client,
                        text_tokenizer,
                        data,
                        top_k=top_k,
                        max_length=max_length,
                        dtype="float32" if float32 else "float16",
                        on_progress=show,
                    )

            warmed = asyncio.run(run())
        typer.echo(f"{warmed.hits:,} sequences were in the cache, {warmed.computed:,} were computed")
        if warmed.refusal is not None:
            raise TrainerError(f"{warmed.refused:,} were refused, the first because {warmed.refusal}")
