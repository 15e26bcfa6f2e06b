"""Load, swaps and quarantine."""

import threading

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.servers import BROKEN, SERVED, tile

pytestmark = pytest.mark.browser


def test_swaps_and_quarantine_are_listed_with_reasons(page: Page, server: str) -> None:
    page.goto(f"{server}/#server")
    swaps = page.locator("#server table", has_text="Swaps")
    expect(swaps.locator("tbody tr").last).to_contain_text("nothing")
    expect(swaps.locator("tbody tr").last).to_contain_text(SERVED)
    bad = page.locator("#server table", has_text="Quarantined").locator("tbody tr")
    expect(bad).to_have_count(1)
    expect(bad).to_contain_text(BROKEN)
    expect(bad).to_contain_text("bytes")
    expect(tile(page, "Device")).to_contain_text("cpu")


def test_load_is_seen_while_something_is_written(page: Page, server: str) -> None:
    page.goto(f"{server}/#server")
    running = tile(page, "Running")
    expect(running).to_have_text("0 requests")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            body = {"prompt": "def f():\n", "max_tokens": 1500, "temperature": 1.5, "top_p": 1}
            httpx.post(f"{server}/generate", json=body, timeout=120, trust_env=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        expect(running).to_have_text("1 requests")
        expect(page.locator("#served")).to_contain_text("1 running")
        speed = tile(page, "Speed")
        expect(speed).not_to_have_text("0.0 tokens/s")
        expect(speed).not_to_have_text("– tokens/s")
        expect(page.locator("figure", has_text="Tokens drawn").locator("canvas")).to_be_visible()
    finally:
        stop.set()
        writer.join()
