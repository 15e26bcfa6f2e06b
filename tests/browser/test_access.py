"""For everybody: without a mouse, on a phone, in the dark, with a key; and nothing that a checker objects to."""

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect

from tests.browser.servers import KEY, SHIPPED, opened, serving
from tests.browser.test_write import wait_for_end, write
from tools.processes import Children

pytestmark = pytest.mark.browser

VIEWS = ("write", "chat", "runs", "server")
PHONE = {"width": 360, "height": 740}


def test_writing_needs_no_mouse(page: Page) -> None:
    def focused() -> str:
        return page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")  # type: ignore[no-any-return]

    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    assert focused() == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("import os\n")
    page.keyboard.press("Control+Enter")
    wait_for_end(page)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    else:
        pytest.fail("the tokens cannot be reached with the Tab key")
    expect(page.get_by_role("tooltip")).to_be_visible()
    width = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(width) == "2px"
    # All tokens are one stop.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") != "option"


def test_skipping_to_the_content_stays_in_the_view(page: Page, server: str) -> None:
    page.goto(f"{server}/#server")
    expect(page.locator("#server .tile").first).to_be_visible()
    page.locator("a.skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#server")).to_be_visible()
    expect(page.get_by_role("link", name="Server")).to_have_attribute("aria-current", "page")


def test_a_checkpoint_can_be_opened_and_left_without_a_mouse(page: Page, server: str) -> None:
    page.goto(f"{server}/#runs")
    mark = page.locator("button.mark").first
    mark.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_checker_of_accessibility_finds_nothing(browser: Browser, server: str, view: str, scheme: str) -> None:
    with opened(browser, f"{server}/#{view}", color_scheme=scheme) as page:
        expect(page.locator("#served code")).to_be_visible()
        if view == "write":
            write(page, Max_tokens="64", Seed="1", Temperature="1.2")
            wait_for_end(page)
            page.get_by_role("button", name="Ask the teacher").click()
            expect(page.locator("rt").first).to_be_attached()
            page.locator("[role=option]").first.focus()
        if view == "chat":
            page.get_by_label("Message").fill("Hello")
            page.get_by_label("Message").press("Enter")
            expect(page.locator("#chat .turn").nth(1).get_by_role("status")).to_contain_text("tokens/s")
        if view == "runs":
            expect(page.locator("button.mark").first).to_be_visible()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, server: str, view: str) -> None:
    with opened(browser, f"{server}/#{view}", viewport=PHONE, has_touch=True, is_mobile=True) as page:
        expect(page.locator("#served code")).to_be_visible()
        if view == "write":
            write(page, Max_tokens="64", Seed="1")
            wait_for_end(page)
            page.locator("[role=option]").nth(3).tap()
            box = page.get_by_role("tooltip").bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE["width"]
        if view == "runs":
            expect(page.locator("button.mark").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        small = page.locator("main button:visible, nav a:visible").evaluate_all(
            "nodes => nodes.filter(n => n.getBoundingClientRect().height < 24).map(n => n.outerHTML)"
        )
        assert not small


def test_light_and_dark_follow_the_system(browser: Browser, server: str) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        with opened(browser, server, color_scheme=scheme) as page:
            colours.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(colours) == 2


def test_nothing_moves_for_who_wants_that(browser: Browser, server: str) -> None:
    moving = "document.getAnimations().length"
    for reduced, expected in (("no-preference", True), ("reduce", False)):
        with opened(browser, server, reduced_motion=reduced) as page:
            write(page, Max_tokens="1500", Temperature="0")
            expect(page.locator("[role=option]").first).to_be_visible()
            assert (page.evaluate(moving) > 0) is expected
            page.get_by_role("button", name="Stop", exact=True).click()


def test_a_server_with_a_key_asks_for_it_and_only_this_tab_keeps_it(browser: Browser, children: Children) -> None:
    variables = {"FALLBACK_RUN": SHIPPED.parent, "INFERENCE_API_KEY": KEY}
    with (
        serving(children, "inference-key", **variables) as url,
        opened(browser, url, expected_complaints=("Failed to load resource",)) as page,
    ):
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server asks for its API key")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("dialog")).to_contain_text("the key is wrong")
        page.get_by_role("dialog").get_by_label("API key").fill(KEY)
        page.get_by_role("dialog").get_by_role("button", name="Use it").click()
        expect(page.locator("#served")).to_contain_text("serving")
        write(page, Max_tokens="8")
        wait_for_end(page)
        expect(page.locator("[role=option]").first).to_be_visible()
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("Object.keys(localStorage).length") == 0
        assert page.evaluate("document.cookie") == ""
        assert KEY not in page.url
