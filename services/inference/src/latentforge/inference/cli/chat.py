"""inference chat: a conversation with a checkpoint that has a chat template."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import typer

from latentforge.core.command_line import errors_reported
from latentforge.inference.cli.local import answer_here, newest_snapshot
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
from latentforge.inference.cli.writing import Writing, interruptible, show
from latentforge.inference.rest.schemas.generate import GenerateRequest
from latentforge.snapshots.snapshot import Snapshot
from latentforge.text.chat_template import Message
from latentforge.text.errors import ChatError

_PROMPT = "> "


def chat(
    system: Annotated[str, typer.Option(help="What the system says first.")] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    stream: Stream = True,
    url: Url = None,
    checkpoints: Checkpoints = None,
    run: Run = None,
) -> None:
    """Talk to the newest checkpoint: /reset begins anew, /quit or Ctrl-D ends."""
    request = request_of(prompt="", max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    answer: Callable[[Sequence[Message]], Writing]
    with interruptible():
        if url:
            answer = partial(_asked, RemoteServer(url), request)
        else:
            snapshot = newest_snapshot(checkpoints, run)
            answer = partial(_answered, snapshot, request)
            with errors_reported(ChatError):
                # Before anything is typed.
                snapshot.tokenizer.encode_chat([{"role": "user", "content": ""}], to_answer=True)
        _talk(answer, [{"role": "system", "content": system}] if system else [], stream=stream)


def _talk(answer: Callable[[Sequence[Message]], Writing], beginning: list[Message], *, stream: bool) -> None:
    messages = list(beginning)
    while (said := _read()) is not None:
        match said.strip():
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                messages = list(beginning)
                typer.echo("(a new chat)", err=True)
                continue
        messages.append({"role": "user", "content": said})
        with errors_reported(ChatError):
            try:
                text, summary = show(answer(messages), stream=stream)
            except ValueError as error:
                if isinstance(error, ChatError):
                    raise
                typer.echo(f"error: {error}", err=True)
                messages.pop()
                continue
        messages.append({"role": "assistant", "content": text})
        typer.echo(str(summary), err=True)


def _read() -> str | None:
    """A line that the user says; None at the end."""
    if sys.stdin.isatty():
        sys.stdout.write(_PROMPT)
        sys.stdout.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _answered(snapshot: Snapshot, request: GenerateRequest, messages: Sequence[Message]) -> Writing:
    return answer_here(snapshot, messages, request)


def _asked(server: RemoteServer, request: GenerateRequest, messages: Sequence[Message]) -> Writing:
    return server.answer(messages, request)
