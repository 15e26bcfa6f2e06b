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


def outside_dependencies(folder: Path, root: Path = ROOT) -> list[str]:
    """Requirements of the package in ``folder`` and of our packages below it, without those packages themselves."""
    own = own_packages(root)
    found: set[str] = set()
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        for requirement in _project(place / "pyproject.toml")["dependencies"]:
            name = re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]
            if name.startswith(PREFIX):
                waiting.append(own[name])
            else:
                found.add(requirement)
    return sorted(found)


def _project(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


if __name__ == "__main__":
    sys.stdout.write("\n".join(outside_dependencies(ROOT / sys.argv[1])) + "\n")
