"""Prompts for a teacher that writes, made of installed packages: questions, and beginnings of documentation and code.

What a drafter has to know is how its teacher goes on, not what people wrote: so a prompt is short, and there are many.
"""

import ast
import json
import random
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import distributions
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from latentforge.text.documents import write_lines
from latentforge.trainer.data.corpus import SourceFile
from latentforge.trainer.data.packages import HELD_OUT_PACKAGES, Packages
from latentforge.trainer.data.question_forms import everyday_questions
from latentforge.trainer.errors import TrainerError

#: of the lines that are written, one after another
KINDS = ("everyday", "documentation", "code", "programming")
_OWN = "latentforge"
_LEAST_CHARACTERS, _MOST_CHARACTERS = 60, 640
_PER_FILE = 3
_ABOUT_CODE = (
    "What does {name} in {module} do?",
    "Write {name} in Python. {what}",
    'Explain this docstring to a beginner: "{what}"',
    "How would you test {name}, which does the following? {what}",
    "Suggest a better name than {name} for something with this description: {what}",
    "Write documentation for {name} of a Python package. {what}",
    "When would somebody use {name}? Its description says: {what}",
    "Implement the following in Python, with comments: {what}",
    "What could go wrong in code that is meant to do this? {what}",
    "Write an example that uses {name} of the module {module}.",
)
_Source = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_HEADING = re.compile(r"^#{1,4} +\S|^[=\-~]{4,}$", re.MULTILINE)

Document = dict[str, Any]


def write_prompts(out: Path, packages: Packages, num: int, seed: int) -> dict[str, int]:
    """Writes prompts as JSONL, the kinds in turns: {"messages"} for questions, {"text"} for what is to be continued.

    Args:
        out: the file, which appears whole or not at all.
        packages: whose documentation and code; what they hold out is asked about by nobody.
        num: how many, at most.
        seed: of the choice.

    Returns:
        How many of each kind.

    Raises:
        TrainerError: the packages hold nothing.
    """
    rng = random.Random(seed)
    of_files = _of_files(packages.files("train", packages.candidates("train", seed)), -(-num // len(KINDS)), rng)
    if not any(of_files.values()):
        raise TrainerError(f"no Python file of installed packages in {', '.join(map(str, packages.roots))}")
    of_files["documentation"] += _descriptions(packages.roots, rng)
    found = {
        kind: _shuffled(of_files[kind] if kind in of_files else map(_question, everyday_questions()), rng)
        for kind in KINDS
    }
    counts = dict.fromkeys(KINDS, 0)

    def lines() -> Iterator[str]:
        turns = (
            (kind, document)
            for group in zip_longest(*(found[kind] for kind in KINDS))
            for kind, document in zip(KINDS, group, strict=True)
            if document is not None
        )
        for kind, document in islice(turns, num):
            counts[kind] += 1
            yield json.dumps(document | {"kind": kind})

    write_lines(out, lines())
    return counts


def _shuffled(documents: Iterable[Document], rng: random.Random) -> list[Document]:
    """Without copies."""
    found = list({json.dumps(document): document for document in documents}.values())
    rng.shuffle(found)
    return found


def _question(text: str) -> Document:
    return {"messages": [{"role": "user", "content": text}]}


def _of_files(files: Iterable[SourceFile], wanted: int, rng: random.Random) -> dict[str, list[Document]]:
    """Of files in their order, some of each kind from each, until there are so many of every kind."""
    makers = {"documentation": _docstrings, "code": _beginnings, "programming": _about_code}
    found: dict[str, list[Document]] = {kind: [] for kind in makers}
    for file in files:
        nodes = _parsed(file)
        for kind, make in makers.items():
            made = list(make(file, nodes, rng))
            found[kind] += rng.sample(made, min(_PER_FILE, len(made)))
        if all(len(documents) >= wanted for documents in found.values()):
            break
    return found


def _about_code(file: SourceFile, nodes: Sequence[_Source], rng: random.Random) -> Iterator[Document]:
    module = file.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in nodes:
        if isinstance(node, ast.Module) or node.name.startswith("_") or not (text := ast.get_docstring(node)):
            continue
        what = " ".join(text.split("\n\n")[0].split())
        if 12 <= len(what) <= _MOST_CHARACTERS:
            yield _question(rng.choice(_ABOUT_CODE).format(name=node.name, module=module, what=what))


def _docstrings(file: SourceFile, nodes: Sequence[_Source], rng: random.Random) -> Iterator[Document]:
    for node in nodes:
        if (text := ast.get_docstring(node)) and len(text) > 3 * _LEAST_CHARACTERS:
            yield from _begun(text, rng)


def _beginnings(file: SourceFile, nodes: Sequence[_Source], rng: random.Random) -> Iterator[Document]:
    """Code from the beginning of a definition, or of the file."""
    lines = file.text.splitlines(keepends=True)
    for node in nodes:
        start = 0 if isinstance(node, ast.Module) else node.lineno - 1
        yield from _begun(textwrap.dedent("".join(lines[start : start + 40])), rng)


def _descriptions(roots: Iterable[Path], rng: random.Random) -> Iterator[Document]:
    """Sections of what distributions say of themselves, from a heading on."""
    apart = {*HELD_OUT_PACKAGES, _OWN}
    for found in sorted(distributions(path=[str(root) for root in roots]), key=lambda d: d.name.lower()):
        if any(found.name.lower().replace("_", "-").startswith(name) for name in apart):
            continue
        # Its fields end with a blank line.
        text = (found.read_text("METADATA") or "").partition("\n\n")[2]
        for heading in _HEADING.finditer(text):
            yield from _begun(text[heading.start() :], rng)


def _begun(text: str, rng: random.Random) -> Iterator[Document]:
    """The beginning of a text, of a length of its own, cut between words."""
    length = rng.randrange(_LEAST_CHARACTERS, _MOST_CHARACTERS)
    if len(text) <= _LEAST_CHARACTERS:
        return
    if len(text) > length:
        text = text[: length + 1].rsplit(None, 1)[0]
    if len(text) >= _LEAST_CHARACTERS // 2:
        yield {"text": text}


def _parsed(file: SourceFile) -> list[_Source]:
    try:
        tree = ast.parse(file.text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [node for node in ast.walk(tree) if isinstance(node, _Source)]
