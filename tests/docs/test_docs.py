"""The documentation can be followed: links lead somewhere, commands and variables exist, pages stay short."""

import importlib.util
import re
from pathlib import Path

import pytest

from experiments.comparisons import Comparison
from latentforge.gateway.backends.base import FailureKind

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(RESULTS.glob("*/README.md"))
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "compose/*.md",
        "libs/*/README.md",
        "models/*/README.md",
        "services/*/README.md",
    )
    for path in ROOT.glob(pattern)
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
_CAPITALS = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_TARGETS = re.compile(r"^([a-z][a-z0-9 -]*):(?!=)", re.MULTILINE)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    titles = re.findall(r"^#+ (.*)$", _CODE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # The package that it is in.
        return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_relative_link_resolves(document: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", document.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in link or path.startswith("mailto:"):
            continue
        target = (document.parent / path) if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_make_target_and_module_that_is_named_exists(document: Path) -> None:
    targets = {name for line in _TARGETS.findall((ROOT / "Makefile").read_text()) for name in line.split()}
    code = "\n".join(_CODE.findall(document.read_text()))
    assert not set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", code, re.MULTILINE)) - targets
    assert set(re.findall(r"WHAT=([a-z-]+)", code)) <= set(Comparison)
    modules = re.findall(r"python -m ([\w.]+)", code)
    assert not [name for name in modules if not _exists(name)]


def _known_names() -> set[str]:
    """Names in capitals that settings, make, the compose files or the code have."""
    files = [ROOT / ".env.example", ROOT / "Makefile", *ROOT.glob("docker-compose*.yml")]
    for code in ("libs/*/src/**/*.py", "services/*/src/**/*.py", "tools/**/*.py", "proto/**/*.proto"):
        files += ROOT.glob(code)
    reasons = {f"TEACHER_{kind.name}" for kind in FailureKind}
    return reasons | {name for path in files for name in _CAPITALS.findall(path.read_text(encoding="utf-8"))}


def test_every_variable_that_is_named_exists() -> None:
    known = _known_names()
    unknown = {
        _name(document): names
        for document in DOCUMENTS
        if (names := set(_CAPITALS.findall(document.read_text(encoding="utf-8"))) - known)
    }
    assert unknown == {}


def test_readme_and_design_stay_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) <= 700
    assert readme.count("![") == 1
    assert len((ROOT / "docs" / "design.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_page_of_results_is_short_and_has_one_table_and_a_verdict(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 60
    assert len(re.findall(r"^\| ---", text, re.MULTILINE)) == 1
    assert "**Verdict" in text
    assert "**What it does not show" in text


def test_every_page_of_results_is_in_the_list_and_every_file_on_a_page() -> None:
    listed = set(_LINK.findall((RESULTS / "README.md").read_text()))
    assert {f"{page.parent.name}/README.md" for page in PAGES} <= listed
    linked = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in _LINK.findall(page.read_text())
        if "://" not in link
    }
    files = {path for path in RESULTS.glob("*/*") if path.suffix in (".json", ".png")}
    assert files
    assert files <= linked
