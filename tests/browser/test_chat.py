"""A conversation with a checkpoint whose tokenizer has a chat template."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

pytestmark = pytest.mark.browser


def test_an_answer_streams_and_the_next_turn_knows_of_it(page: Page, server: str) -> None:
    asked: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            asked.append(json.loads(request.post_data or "{}"))

    page.on("request", note)
    page.goto(f"{server}/#chat")
    page.locator("#chat").get_by_label("Max tokens").fill("24")
    message = page.get_by_label("Message")
    message.fill("Write a loop.")
    message.press("Enter")
    turns = page.get_by_role("list", name="Conversation").get_by_role("listitem")
    expect(turns).to_have_count(2)
    expect(turns.nth(0)).to_contain_text("Write a loop.")
    expect(turns.nth(1).get_by_role("status")).to_contain_text("tokens/s")
    expect(message).to_have_value("")
    first = turns.nth(1).locator("[role=option]")
    assert first.count() > 0
    first.first.hover()
    expect(page.get_by_role("tooltip")).to_be_visible()

    message.fill("And <b>another</b>.")
    page.get_by_role("button", name="Send").click()
    expect(turns).to_have_count(4)
    expect(turns.nth(2)).to_contain_text("And <b>another</b>.")
    expect(turns.nth(3).get_by_role("status")).to_contain_text("tokens/s")
    roles = [message["role"] for message in asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert all(message["content"] for message in asked[1]["messages"])

    page.get_by_role("button", name="New chat").click()
    expect(turns).to_have_count(0)


def test_stop_ends_an_answer(page: Page, server: str) -> None:
    page.goto(f"{server}/#chat")
    page.locator("#chat").get_by_label("Max tokens").fill("1500")
    page.locator("#chat").get_by_label("Temperature").fill("1.5")
    page.get_by_label("Message").fill("Go on for long.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat [role=option]").nth(8)).to_be_visible()
    page.locator("#chat").get_by_role("button", name="Stop").click()
    expect(page.locator("#chat .turn").nth(1).get_by_role("status")).to_contain_text("stopped by you")
