"""Options that several commands take, and what they come to."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from latentforge.core.command_line import WRONG_USAGE, fail
from latentforge.core.errors import describe_errors
from latentforge.inference.rest.schemas.generate import GenerateRequest

Checkpoints = Annotated[Path | None, typer.Option("--checkpoints", help="Checkpoints folder (CHECKPOINTS_DIR).")]
Run = Annotated[str | None, typer.Option("--run", help="Use this run's only (CHECKPOINT_RUN).")]
Url = Annotated[
    str | None,
    typer.Option(help="Ask a running server, like http://localhost:7860, with the key of INFERENCE_API_KEY."),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option("--temp", min=0, max=100, help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens with this share of the mass.")]
TopK = Annotated[int, typer.Option(min=0, help="Keep so many of the likeliest tokens; 0 keeps all.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")]
Stream = Annotated[bool, typer.Option(help="Show the text as it is written.")]


def request_of(**values: Any) -> GenerateRequest:
    """A request of options; ends the process with what is wrong with one."""
    try:
        return GenerateRequest(**values)
    except ValidationError as error:
        fail("; ".join(describe_errors(error)), code=WRONG_USAGE)
