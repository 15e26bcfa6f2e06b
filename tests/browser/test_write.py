"""Writing: chunks stream, tokens tell how probable they were, and what could have stood there instead."""

import json
import re

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect

from tests.browser.servers import SERVED, opened

pytestmark = pytest.mark.browser

PROMPT = "def main(argv=None):\n"


def write(page: Page, prompt: str = PROMPT, **controls: str) -> None:
    panel = page.locator("#write")
    panel.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in controls.items():
        panel.get_by_label(name.replace("_", " "), exact=True).fill(value)
    panel.get_by_role("button", name="Write", exact=True).click()


def wait_for_end(page: Page) -> None:
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled(timeout=60_000)


def texts(page: Page) -> str:
    return "".join(page.locator("[role=listbox]").first.evaluate_all("lists => lists.map(l => l.textContent)"))


def test_what_is_shown_is_what_the_api_writes(page: Page, server: str) -> None:
    write(page, Max_tokens="40", Seed="7", Temperature="0.7")
    wait_for_end(page)
    body = {"model": "latentforge", "prompt": PROMPT, "max_tokens": 40, "seed": 7, "temperature": 0.7, "top_p": 0.95}
    choice = httpx.post(f"{server}/v1/completions", json=body | {"logprobs": 5}, trust_env=False, timeout=60).json()[
        "choices"
    ][0]
    assert choice["text"].strip()
    assert texts(page).replace("↵", "") == "".join(choice["logprobs"]["tokens"])
    expect(page.locator("article h2")).to_have_text(SERVED)
    expect(page.get_by_role("status").first).to_contain_text(f"{len(choice['token_ids'])} tokens in")
    expect(page.locator(".text .prompt")).to_have_text(PROMPT)


def test_a_chunk_is_what_one_step_wrote_and_has_a_border(page: Page) -> None:
    write(page, Max_tokens="24", Seed="1")
    wait_for_end(page)
    sizes = page.locator(".chunk").evaluate_all("chunks => chunks.map(c => c.querySelectorAll('[role=option]').length)")
    # K = 8; the first step writes what the prompt leaves of its chunk, the last one what is left to write.
    assert sum(sizes) == 24
    assert len(sizes) >= 3
    assert max(sizes) <= 8
    border = "chunk => getComputedStyle(chunk, '::before').borderLeftWidth"
    assert page.locator(".chunk").nth(1).evaluate(border) == "2px"


def test_chunks_come_one_after_another(page: Page) -> None:
    """The list grows while the answer is still being written."""
    page.locator(".panes").wait_for(state="attached")
    page.evaluate(
        """() => {
          window.sizes = [];
          new MutationObserver(() => window.sizes.push(document.querySelectorAll('[role=option]').length))
            .observe(document.querySelector('.panes'), { childList: true, subtree: true });
        }"""
    )
    write(page, Max_tokens="400", Seed="1")
    wait_for_end(page)
    sizes = page.evaluate("window.sizes")
    assert len({size for size in sizes if size}) > 5
    assert sizes == sorted(sizes)


def test_tokens_are_told_apart_by_colour_and_by_their_bars(page: Page) -> None:
    write(page, Max_tokens="200", Seed="3", Temperature="1.3")
    wait_for_end(page)
    shown = page.locator("[role=option]").evaluate_all(
        """nodes => nodes.map(node => {
          const style = getComputedStyle(node);
          return [node.className.match(/p[0-4]/)[0], style.backgroundColor, style.boxShadow, node.ariaLabel];
        })"""
    )
    by_class = {name: (colour, bar) for name, colour, bar, _ in shown}
    assert len(by_class) >= 4
    assert len({colour for colour, _ in by_class.values()}) == len(by_class)
    assert len({bar for _, bar in by_class.values()}) == len(by_class)
    for name, _, _, label in shown:
        percent = float(re.search(r"([\d.]+) %$", label)[1])  # type: ignore[index]
        expected = sum(percent < least for least in (80, 50, 20, 5))
        # The label is rounded.
        assert min(abs(percent - edge) for edge in (80, 50, 20, 5)) < 0.6 or name == f"p{expected}"


def test_alternatives_show_on_hover_and_on_focus_and_go_with_escape(page: Page) -> None:
    write(page, Max_tokens="16", Seed="3", Temperature="1")
    wait_for_end(page)
    box = page.get_by_role("tooltip")
    expect(box).to_be_hidden()
    page.locator("[role=option]").nth(2).hover()
    expect(box).to_be_visible()
    rows = box.locator("tbody tr")
    assert 5 <= rows.count() <= 6
    expect(box.locator("tr.written")).to_have_count(1)
    expect(box).to_contain_text("chunk 1, token 3")
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()

    page.locator("[role=option]").first.focus()
    expect(box).to_contain_text("token 1,")
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 16), ("Home", 1)):
        page.keyboard.press(key)
        expect(box).to_contain_text(f"token {place},")
    page.keyboard.press("ArrowDown")
    expect(box).to_contain_text("chunk 2,")
    page.keyboard.press("ArrowUp")
    expect(box).to_contain_text("chunk 1,")
    focused = page.locator("[role=option]:focus")
    expect(focused).to_have_attribute("aria-describedby", "alternatives")
    expect(focused).to_have_attribute("aria-selected", "true")


def test_the_shares_of_the_alternatives_are_the_models(page: Page, server: str) -> None:
    write(page, Max_tokens="8", Temperature="0")
    wait_for_end(page)
    page.locator("[role=option]").first.hover()
    shown = (
        page.get_by_role("tooltip")
        .locator("tbody tr")
        .evaluate_all("rows => rows.map(r => parseFloat(r.lastElementChild.textContent.replace('< ', '')))")
    )
    body = {"model": "latentforge", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 5}
    answer = httpx.post(f"{server}/v1/completions", json=body, trust_env=False, timeout=60).json()
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    expected = sorted((100 * 2.718281828**value for value in top.values()), reverse=True)
    assert shown == sorted(shown, reverse=True)
    assert all(abs(a - b) < 0.6 for a, b in zip(shown, expected, strict=True))


def test_the_same_seed_gives_the_same_text_and_another_another(page: Page) -> None:
    written = []
    for seed in ("5", "5", "6"):
        write(page, Max_tokens="32", Seed=seed, Temperature="1")
        wait_for_end(page)
        written.append(texts(page))
    assert written[0] == written[1] != written[2]


def test_stop_ends_an_answer_and_keeps_what_is_there(page: Page) -> None:
    # The likeliest continuation repeats itself, and does not end.
    write(page, Max_tokens="1500", Temperature="0")
    expect(page.locator("[role=option]").nth(8)).to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("article").get_by_role("status").first).to_contain_text("stopped by you")
    count = page.locator("[role=option]").count()
    assert 8 < count < 1500
    page.wait_for_timeout(300)
    assert page.locator("[role=option]").count() == count


def test_what_the_server_refuses_is_said_in_its_words(browser: Browser, server: str) -> None:
    with opened(browser, server, expected_complaints=("Failed to load resource",)) as page:
        write(page, Max_tokens="99999")
        problem = page.locator("article").get_by_role("alert").first
        expect(problem).to_contain_text("tokens")
        expect(page.locator("article").get_by_role("status").first).to_contain_text("failed")


def test_a_server_that_is_gone_is_said_so(browser: Browser, server: str) -> None:
    with opened(browser, server, expected_complaints=("Failed to load resource", "net::ERR")) as page:
        page.route("**/v1/completions", lambda route: route.abort())
        write(page)
        expect(page.locator("article").get_by_role("alert").first).to_contain_text("The server does not answer")
        page.route("**/status", lambda route: route.abort())
        expect(page.locator("#served")).to_have_text("not reachable")


def test_an_answer_that_breaks_off_is_said_so(page: Page) -> None:
    def cut(route: Route, _: Request) -> None:
        answer = route.fetch()
        events = answer.text().split("\n\n")
        route.fulfill(response=answer, body="\n\n".join(events[:2]) + "\n\n")

    page.route("**/v1/completions", cut)
    write(page, Max_tokens="64", Seed="1")
    expect(page.locator("article").get_by_role("alert").first).to_contain_text("broke off")
    assert page.locator("[role=option]").count() > 0


def test_markup_that_a_student_writes_is_text(page: Page) -> None:
    """A copying student is shown markup; what it writes is checked to hold some."""
    line = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">\n"
    write(page, prompt=line * 12, Max_tokens="120", Temperature="0")
    wait_for_end(page)
    assert "<script>" in texts(page) or "<img" in texts(page)
    expect(page.locator(".text .prompt")).to_have_text(line * 12)
    assert page.locator("main script, main img, .alternatives script").count() == 0
    for node in page.locator("[role=option]").all()[:20]:
        node.hover()
    assert page.title() == "Write · LatentForge"


def test_markup_in_every_place_of_an_event_is_text(page: Page) -> None:
    """The API's own events with markup put into each text of them: names, tokens, alternatives, an error."""
    bad = "<img src=x onerror=\"document.title='hacked'\">"

    def spoil(route: Route, _: Request) -> None:
        answer = route.fetch()
        events = [line for line in answer.text().split("\n\n") if line.startswith("data: {")]
        spoilt = []
        for text in events[:2]:
            event = json.loads(text[6:])
            event["model"] = event["system_fingerprint"] = bad
            for choice in event["choices"]:
                count = len(choice["logprobs"]["tokens"])
                choice["logprobs"]["tokens"] = [bad] * count
                choice["logprobs"]["top_logprobs"] = [{bad: -1.0, f"{bad}2": -2.0}] * count
            spoilt.append(f"data: {json.dumps(event)}\n\n")
        spoilt.append(f"data: {json.dumps({'error': {'message': bad, 'code': 'x'}})}\n\n")
        route.fulfill(response=answer, body="".join(spoilt))

    page.route("**/v1/completions", spoil)
    write(page, Max_tokens="64", Seed="1")
    expect(page.locator("article").get_by_role("alert").first).to_have_text(bad)
    page.locator("[role=option]").first.hover()
    expect(page.get_by_role("tooltip").locator("tr").nth(1)).to_contain_text(bad.replace(" ", "␣"))
    expect(page.locator("article h2")).to_have_text(bad)
    assert page.locator("main img, .alternatives img").count() == 0
    assert page.title() == "Write · LatentForge"
