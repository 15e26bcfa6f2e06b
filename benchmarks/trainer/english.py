"""English text that every machine with Python has: the docstrings of its standard library."""

import ast
import json
from itertools import islice
from pathlib import Path

from latentforge.text.held_out import Split
from latentforge.trainer.data.corpus import stdlib_root, whole_files

# Shorter ones are headings rather than text.
_LEAST_CHARACTERS = 200


def write_docstrings(path: Path, split: Split, most_files: int | None = None) -> None:
    """Writes a document of JSONL for each source file of a split: its docstrings, those alone that no earlier one had.

    Args:
        path: is written.
        split: of the library's files, as everywhere here decided by their names.
        most_files: that are looked at; None takes all.
    """
    seen: set[str] = set()
    with path.open("w", encoding="utf-8") as out:
        for file in islice(whole_files(stdlib_root(), split), most_files):
            found = [text for text in _docstrings(file.text) if text not in seen]
            seen.update(found)
            if found:
                out.write(json.dumps({"text": "\n\n".join(found)}) + "\n")


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        # Of a library's files some are templates.
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in dict.fromkeys(found) if len(text) >= _LEAST_CHARACTERS]
