"""One word for one thing: what a search for a name finds is what was meant."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("libs/*/src", "services/*/src", "tools", "experiments", "benchmarks", "models")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for pattern in _FOLDERS:
        for folder in ROOT.glob(pattern):
            for path in folder.rglob("*.py"):
                yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def test_a_public_class_name_stands_for_one_thing() -> None:
    found = defaultdict(list)
    for path, module in modules():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path))
    assert len(found) > 300
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_loggers_are_all_called_logger() -> None:
    names = set()
    for path, module in modules():
        for node in module.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("logging.getLogger("):
                names.add((ast.unparse(node.targets[0]), str(path)))
    assert len(names) > 5
    assert {entry for entry in names if entry[0] != "logger"} == set()
