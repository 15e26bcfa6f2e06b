"""Prints what a service installs from an index, so that an image can install it before the service's code is copied.

Usage: python3 tools/dependencies.py services/trainer
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "latentforge-"


def own_packages(root: Path) -> dict[str, Path]:
    """Our packages by name, each with its folder."""
    files = [
        root / "proto" / "pyproject.toml",
        *root.glob("libs/*/pyproject.toml"),
        *root.glob("services/*/pyproject.toml"),
    ]
    return {str(_project(path)["name"]): path.parent for path in files if path.is_file()}


def needed_packages(folder: Path, root: Path = ROOT) -> set[Path]:
    """The folders of our packages that the one in ``folder`` needs, its own among them."""
    own = own_packages(root)
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += [own[name] for name in map(_name, _requirements(place)) if name.startswith(PREFIX)]
    return seen


def outside_dependencies(folder: Path, root: Path = ROOT) -> list[str]:
    """Requirements of the package in ``folder`` and of our packages below it, without those packages themselves."""
    found = {requirement for place in needed_packages(folder, root) for requirement in _requirements(place)}
    return sorted(requirement for requirement in found if not _name(requirement).startswith(PREFIX))


def _requirements(folder: Path) -> list[str]:
    requirements: list[str] = _project(folder / "pyproject.toml")["dependencies"]
    return requirements


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]


def _project(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


if __name__ == "__main__":
    sys.stdout.write("\n".join(outside_dependencies(ROOT / sys.argv[1])) + "\n")
