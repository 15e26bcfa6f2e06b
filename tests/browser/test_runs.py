"""A run's curves with its checkpoints on them; a click serves one; a run that trains is followed."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.servers import BROKEN, OTHER, RUN, SERVED, opened, serving, tile
from tools.processes import Children

pytestmark = pytest.mark.browser


@pytest.fixture
def runs(page: Page, server: str, checkpoints: Path) -> Iterator[Page]:
    page.goto(f"{server}/#runs")
    page.get_by_label("Run", exact=True).select_option(RUN)
    expect(page.locator("figure", has_text="Cross-entropy")).to_be_visible()
    yield page
    (checkpoints / RUN / "pinned").unlink(missing_ok=True)


def test_each_checkpoint_is_marked_on_the_curve_and_listed(runs: Page) -> None:
    # Nobody measured drafts of these.
    expect(runs.locator("figure", has_text="Drafts its teacher would accept")).to_be_hidden()
    curve = runs.locator("figure", has_text="Cross-entropy")
    marks = curve.locator("button.mark")
    # The broken one too: it has been published, and its metrics are the copied manifest's.
    expect(marks).to_have_count(3)
    labels = [marks.nth(i).get_attribute("aria-label") or "" for i in range(3)]
    assert any(label == f"{SERVED}, 2.944 nats/token, served" for label in labels)
    assert any(label.startswith(f"{OTHER}, 3.200") for label in labels)
    assert any(label.startswith(BROKEN) and label.endswith("quarantined") for label in labels)
    xs = {label.split(",")[0]: marks.nth(i).bounding_box() for i, label in enumerate(labels)}
    assert xs[OTHER]["x"] < xs[SERVED]["x"] < xs[BROKEN]["x"]  # type: ignore[index]
    assert xs[OTHER]["y"] < xs[SERVED]["y"]  # type: ignore[index]
    expect(curve.locator(".uplot")).to_have_attribute("aria-label", re.compile("held out from 3.200 at step 1200 to"))
    rows = runs.locator("#runs table.stack").last.locator("tbody tr")
    expect(rows).to_have_count(3)

    curve.get_by_text("as a table").click()
    first = curve.get_by_role("region", name="Cross-entropy: figures").get_by_role("row").nth(1)
    expect(first).to_contain_text("1200")
    expect(first).to_contain_text("3.200")


def test_a_click_on_a_mark_pins_it_and_it_is_served_until_it_is_unpinned(runs: Page, server: str) -> None:
    runs.locator("figure", has_text="Cross-entropy").locator(f"button.mark[aria-label^='{OTHER}']").click()
    dialog = runs.get_by_role("dialog")
    expect(dialog).to_contain_text(OTHER)
    expect(dialog).to_contain_text("3.200")
    dialog.get_by_role("button", name="Serve it (pin)").click()
    expect(dialog).to_be_hidden()
    expect(runs.locator("#runs").get_by_role("status").first).to_contain_text(f"{RUN} is pinned to {OTHER}")
    expect(runs.locator("#served")).to_contain_text(OTHER)
    assert httpx.get(f"{server}/health", trust_env=False).json()["checkpoint"] == OTHER
    row = runs.locator("#runs table.stack").last.locator("tr", has_text=OTHER)
    expect(row).to_contain_text("served")
    expect(row).to_contain_text("pinned")

    row.get_by_role("button", name=f"Open {OTHER}").click()
    dialog.get_by_role("button", name="Unpin").click()
    expect(runs.locator("#served")).to_contain_text(SERVED)


def test_a_pin_that_cannot_be_written_is_said_in_words(browser: Browser, server: str, checkpoints: Path) -> None:
    # A folder in the file's place: root may write wherever it is only forbidden.
    (checkpoints / RUN / "pinned").mkdir()
    try:
        with opened(browser, f"{server}/#runs", expected_complaints=("Failed to load resource",)) as page:
            page.get_by_label("Run", exact=True).select_option(RUN)
            page.get_by_role("button", name=f"Open {OTHER}").click()
            page.get_by_role("dialog").get_by_role("button", name="Serve it (pin)").click()
            expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("is a folder; remove it")
    finally:
        (checkpoints / RUN / "pinned").rmdir()


def test_one_can_be_written_with_from_here(runs: Page) -> None:
    runs.get_by_role("button", name=f"Open {OTHER}").click()
    runs.get_by_role("dialog").get_by_role("button", name="Write with it").click()
    expect(runs.locator("#write").get_by_label("Checkpoint", exact=True)).to_have_value(OTHER)
    expect(runs.get_by_label("Prompt", exact=True)).to_be_focused()
    runs.get_by_role("button", name="Write", exact=True).click()
    expect(runs.locator("article h2")).to_have_text(OTHER)
    expect(runs.locator("article").get_by_role("status").first).to_contain_text("tokens/s")


def test_a_quarantined_one_cannot_be_pinned_and_says_why(runs: Page) -> None:
    runs.get_by_role("button", name=f"Open {BROKEN}").click()
    dialog = runs.get_by_role("dialog")
    expect(dialog).to_contain_text("bytes")
    expect(dialog.get_by_role("button", name="Serve it (pin)")).to_have_count(0)
    expect(dialog.get_by_role("button", name="Write with it")).to_have_count(0)


def test_a_run_is_followed_while_it_trains(browser: Browser, children: Children, training: tuple[str, Path]) -> None:
    status, folder = training
    variables = {"CHECKPOINTS_DIR": folder, "INFERENCE_TRAINER_STATUS_URL": status}
    with serving(children, "inference-training", **variables) as url, opened(browser, f"{url}/#runs") as page:
        expect(page.get_by_label("Run", exact=True)).to_have_value("live")
        expect(tile(page, "Stage")).to_have_text("student")
        drafts = "Accepted of 8 drafted, held out"
        for name in ("Loss, training", "CE, held out", "KD, held out", drafts, "Speed", "Waited for the teacher"):
            expect(tile(page, name)).to_contain_text(re.compile(r"\d"))
        expect(tile(page, "Left in this stage")).to_contain_text(re.compile(r"\d"))
        step = tile(page, "Step")
        before = step.text_content()
        expect(step).not_to_have_text(before or "")
        curve = page.locator("figure", has_text="Cross-entropy").locator(".uplot")
        expect(curve).to_have_attribute("aria-label", re.compile("training from .* held out from "))
        expect(page.locator("figure", has_text="Training speed")).to_be_visible()
        expect(page.locator("figure", has_text="Drafts its teacher would accept").locator(".uplot")).to_be_visible()
        expect(page.locator("figure", has_text="Cross-entropy").locator("button.mark").first).to_be_visible()
        expect(page.get_by_role("progressbar")).to_be_visible()


def test_a_trainer_that_is_gone_is_said_so(browser: Browser, children: Children, checkpoints: Path) -> None:
    variables = {
        "CHECKPOINTS_DIR": checkpoints,
        "INFERENCE_TRAINER_STATUS_URL": "http://127.0.0.1:9",
    }
    with (
        serving(children, "inference-alone", **variables) as url,
        opened(browser, f"{url}/#runs", expected_complaints=("Failed to load resource",)) as page,
    ):
        expect(page.locator("#runs")).to_contain_text("no trainer answers at http://127.0.0.1:9")
        expect(page.locator("figure", has_text="Cross-entropy").locator("button.mark").first).to_be_visible()
