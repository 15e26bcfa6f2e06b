"""The page's files: all there, all from here, and sent with headers that keep it so."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from latentforge.inference.page.assets import STATIC

OWN = sorted(p for p in STATIC.rglob("*") if p.suffix in (".html", ".css", ".js", ".svg") and "vendor" not in p.parts)
_REFERENCE = re.compile(r"""(?:src|href)="([^"#]+)"|from "\./([^"]+)"|url\(([^)]+)\)""")
# A name, not an address.
_SVG = "http://www.w3.org/2000/svg"


async def test_the_page_is_served_and_may_ask_its_own_origin_alone(page_server: Any) -> None:
    async with page_server() as (client, _):
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == "'none'"
        assert set(policy.values()) == {"'self'", "'none'"}
        assert page.headers["x-content-type-options"] == "nosniff"
        probe = await client.head("/")
        assert (probe.status_code, probe.content) == (200, b"")


async def test_everything_that_the_page_names_is_there(page_server: Any) -> None:
    async with page_server() as (client, _):
        for path in OWN:
            base = "/" if path.suffix == ".html" else f"/page/{path.relative_to(STATIC).parent}/"
            for found in _REFERENCE.findall(path.read_text()):
                name = next(filter(None, found))
                answer = await client.get(base + name)
                assert answer.status_code == 200, f"{path.name} names {name}"
                if name != "docs":
                    assert answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/page/../settings.py", "/page/%2e%2e/routes.py", "/page/js/", "/page/no.js"])
async def test_nothing_else_is_served(page_server: Any, path: str) -> None:
    async with page_server() as (client, _):
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_names_another_server_or_writes_markup(path: Path) -> None:
    text = path.read_text().replace(_SVG, "")
    assert not re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}", text)
    # What a model writes becomes text; innerHTML is read for comparing, and never set.
    assert not re.findall(r"innerHTML\s*=[^=]|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text) or path.suffix != ".html"


def test_what_is_vendored_is_what_its_readme_says() -> None:
    folder = STATIC / "vendor" / "uplot"
    rows = re.findall(r"^\| (\S+\.(?:js|css)) \| ([0-9a-f]{64}) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {p.name for p in folder.iterdir() if p.suffix in (".js", ".css")}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in rows)
    assert "MIT" in (folder / "LICENSE").read_text()
