"""What the browser's tests start and open: servers as processes, checkpoints, and pages that must not complain."""

import hashlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

from latentforge.core.manifest import MANIFEST
from latentforge.text.fingerprint import tokenizer_fingerprint
from tools.demo.settings import ROOT
from tools.processes import Child, Children

SHIPPED = ROOT / "models" / "stdlib-student" / "step-00000330"
RUN = "library"
# Of the shipped student's weights at two steps, so that there are two to compare.
STEPS = {1200: {"held_out_ce": 3.2, "held_out_kd": 0.6}, 2520: {"held_out_ce": 2.944, "held_out_kd": 0.45}}
SERVED, OTHER = f"{RUN}/step-00002520", f"{RUN}/step-00001200"
BROKEN = f"{RUN}/step-00003000"
STRANGER = "stranger/step-00000001"
START_SECONDS = 120.0
# A machine of two cores may have much else to do.
PATIENCE_MS = 30_000
KEY = "page-test-key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def published(root: Path, run: str, step: int, **changes: Any) -> Path:
    """The shipped student's checkpoint under another name."""
    place = root / run / f"step-{step:08d}"
    shutil.copytree(SHIPPED, place)
    path = place / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"run": run, "step": step} | changes), encoding="utf-8")
    return place


def with_another_tokenizer(place: Path) -> None:
    """Takes the last merge away: nearly every text has the same ids, and the fingerprint is another."""
    path = place / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    manifest["tokenizer_fingerprint"] = tokenizer_fingerprint(place / "tokenizer")
    data = path.read_bytes()
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["tokenizer/tokenizer.json"] = record
    (place / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@contextmanager
def environment(**variables: object) -> Iterator[None]:
    """Variables that a child gets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, str(value))
        yield


def tile(page: Page, name: str) -> Locator:
    """The figure that is called exactly so."""
    return page.locator(".tile").filter(has=page.get_by_text(name, exact=True)).locator("dd")


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextmanager
def serving(children: Children, name: str, **variables: object) -> Iterator[str]:
    """A server in a process of its own: its URL."""
    port = free_port()
    with environment(INFERENCE_PORT=port, INFERENCE_DEVICE="cpu", INFERENCE_POLL_SECONDS=0.2, **variables):
        child: Child = children.start(name, [program("inference"), "serve"])
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return bool(httpx.get(f"{url}/ready", trust_env=False).status_code == httpx.codes.OK)
        except httpx.HTTPError:
            return False

    children.wait_until(is_ready, "starting inference", seconds=START_SECONDS)
    yield url
    children.leave(child)
    child.stop(10)


@contextmanager
def opened(browser: Browser, url: str, *, expected_complaints: tuple[str, ...] = (), **context: Any) -> Iterator[Page]:
    """A page of its own; whatever the browser complains of, or asks another server, fails the test at its end."""
    origin = url.partition("/#")[0]
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(text in message.text for text in expected_complaints):
            complaints.append(f"{message.type}: {message.text}")

    with ExitStack() as stack:
        made = browser.new_context(**{"viewport": {"width": 1180, "height": 900}} | context)
        stack.callback(made.close)
        made.set_default_timeout(PATIENCE_MS)
        page = made.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        foreign: list[str] = []
        page.on(
            "request", lambda request: None if request.url.startswith(f"{origin}/") else foreign.append(request.url)
        )
        page.goto(url)
        yield page
        assert not complaints
        assert not foreign
