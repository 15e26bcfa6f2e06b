"""What every command shares: how errors become words and exit codes, and the option that several have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="The teacher's tokenizer folder.", show_default="TOKENIZER_PATH")
]


@contextmanager
def user_errors() -> Iterator[None]:
    """Says what a user can put right in plain words, and ends with the right exit code."""
    import grpc

    from latentforge.core.logs import configure_logging
    from latentforge.core.settings import SettingsError
    from latentforge.core.teacher_client import TeacherError
    from latentforge.trainer.interrupt import Interrupted

    del grpc
    configure_logging("trainer")
    try:
        yield
    except Interrupted:
        typer.echo("stopped as asked; everything is saved. Run the same command to go on.", err=True)
        raise typer.Exit(0) from None
    except SettingsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except (ValueError, TeacherError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
