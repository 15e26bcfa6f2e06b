"""inference infer: continues one prompt."""

from typing import Annotated

import typer

from latentforge.core.command_line import errors_reported
from latentforge.inference.cli.local import newest_snapshot, write_here
from latentforge.inference.cli.options import (
    Checkpoints,
    MaxTokens,
    Run,
    Seed,
    Stream,
    Temperature,
    TopK,
    TopP,
    Url,
    request_of,
)
from latentforge.inference.cli.remote import RemoteServer
from latentforge.inference.cli.writing import Summary, Writing, interruptible, show
from latentforge.inference.rest.prompts import PromptError
from latentforge.inference.rest.schemas.generate import GenerateRequest, GenerateResponse


def infer(
    prompt: Annotated[str, typer.Option(help="What to continue; may be empty.")] = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    parse_special_tokens: Annotated[
        bool, typer.Option("--parse-special-tokens", help="Read special tokens that are written in the prompt as such.")
    ] = False,
    stream: Stream = True,
    url: Url = None,
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Continue one prompt with the newest checkpoint."""
    request = request_of(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        parse_special_tokens=parse_special_tokens,
    )
    with interruptible():
        if url:
            _, summary = show(_asked(RemoteServer(url), request, stream=stream), stream=stream)
        else:
            with errors_reported(PromptError):
                _, summary = show(write_here(newest_snapshot(checkpoints, run), request), stream=stream)
        typer.echo(str(summary))


def _asked(server: RemoteServer, request: GenerateRequest, *, stream: bool) -> Writing:
    # Only the whole answer's request knows of special tokens.
    if stream and not request.parse_special_tokens:
        return server.write(request)
    return _whole(server.generate(request))


def _whole(answer: GenerateResponse) -> Writing:
    yield answer.text
    usage = answer.usage
    return Summary(
        answer.checkpoint,
        usage.completion_tokens,
        usage.latent_steps,
        answer.milliseconds / 1000,
        answer.seed,
        answer.finish_reason,
    )
