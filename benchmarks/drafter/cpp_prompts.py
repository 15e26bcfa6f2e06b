"""python -m benchmarks.drafter.cpp_prompts: C++ for a drafter that has seen none, and C++ to ask it about afterwards.

Pieces of PyTorch's own headers, which its package brings along (BSD-3-Clause), so that nothing has to be fetched. What
is held out is of other files than what a student may train on.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from latentforge.core.command_line import errors_reported

_SIZES = range(4_001, 200_000)
_PIECES_A_FILE = 2
_LINES = range(12, 30)
_LEAST_CHARACTERS = 201
_HELD_OUT_FILES = 120
_HELD_OUT, _TRAIN = 96, 1200
#: Names of the two files.
HELD_OUT, TRAIN = "held_out.jsonl", "train.jsonl"

app = typer.Typer(add_completion=False)


def cpp_pieces(headers: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pieces of C++ headers below a folder: those to train on, and those of files that are held out.

    Raises:
        FileNotFoundError: it holds too few.
    """
    rng = random.Random(seed)
    files = sorted(path for path in headers.rglob("*.h") if path.stat().st_size in _SIZES)
    rng.shuffle(files)
    pieces = [(path.relative_to(headers).as_posix(), text) for path in files for text in _pieces(path, rng)]
    names = sorted({name for name, _ in pieces})
    rng.shuffle(names)
    held_out = set(names[:_HELD_OUT_FILES])
    sides = [[text for name, text in pieces if (name in held_out) == is_held_out] for is_held_out in (False, True)]
    for side in sides:
        rng.shuffle(side)
    train, asked = sides[0][:_TRAIN], sides[1][:_HELD_OUT]
    if len(train) < _TRAIN or len(asked) < _HELD_OUT:
        raise FileNotFoundError(f"{headers} gives {len(train)} and {len(asked)} pieces; install torch's own wheel")
    return train, asked


def _pieces(path: Path, rng: random.Random) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="ignore")
    if not text.isascii():
        return
    lines = text.split("\n")
    for _ in range(_PIECES_A_FILE):
        start = rng.randrange(max(1, len(lines) - _LINES.stop - 10))
        piece = "\n".join(lines[start : start + rng.randrange(_LINES.start, _LINES.stop)]) + "\n"
        if len(piece) >= _LEAST_CHARACTERS:
            yield piece


def write_pieces(path: Path, texts: Sequence[str]) -> None:
    """As JSONL that ``trainer collect`` reads."""
    path.write_text("".join(json.dumps({"text": text, "kind": "cpp"}) + "\n" for text in texts), encoding="utf-8")


@app.command()
def main(out: Annotated[Path, typer.Option(help="Folder for train.jsonl and held_out.jsonl.")]) -> None:
    """Writes prompts of a domain that no student was trained on: pieces of PyTorch's C++ headers."""
    with errors_reported(OSError):
        train, asked = cpp_pieces(Path(torch.__file__).parent / "include")
        out.mkdir(parents=True, exist_ok=True)
        write_pieces(out / TRAIN, train)
        write_pieces(out / HELD_OUT, asked)
    typer.echo(f"{len(train)} pieces to train on and {len(asked)} to ask about in {out}")


if __name__ == "__main__":
    app()
