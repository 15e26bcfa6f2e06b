"""Text as it is written, whoever writes it, and what is shown of it."""

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import typer

_INTERRUPTED = 130


class Summary(NamedTuple):
    """What is known once a text is written."""

    checkpoint: str
    num_tokens: int
    num_steps: int
    seconds: float
    seed: int
    finish_reason: str

    def __str__(self) -> str:
        return (
            f"[{self.checkpoint}, {self.num_tokens} tokens in {self.num_steps} latent steps, "
            f"{self.num_tokens / self.seconds:.1f} tokens/s, seed {self.seed}, {self.finish_reason}]"
        )


# Gives pieces of a text, and a summary at its end.
Writing = Generator[str, None, Summary]


def show(writing: Writing, *, stream: bool = True) -> tuple[str, Summary]:
    """Writes a text to stdout, with a line break behind it; gives it and its summary.

    Args:
        writing: the text.
        stream: each piece at once; else all at the end.
    """
    pieces: list[str] = []
    while True:
        try:
            piece = next(writing)
        except StopIteration as done:
            summary: Summary = done.value
            break
        pieces.append(piece)
        if stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    text = "".join(pieces)
    sys.stdout.write("\n" if stream else f"{text}\n")
    sys.stdout.flush()
    return text, summary


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the process with exit code 130, on a line of its own and without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        raise typer.Exit(_INTERRUPTED) from None
