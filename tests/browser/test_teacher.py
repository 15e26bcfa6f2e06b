"""The teacher beside the student, and two checkpoints side by side."""

import math

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.tokenizer import TextTokenizer
from tests.browser.servers import OTHER, SERVED, SHIPPED, STRANGER, opened, serving
from tests.browser.test_write import PROMPT, wait_for_end, write
from tools.demo.settings import TEACHER
from tools.processes import Children

pytestmark = pytest.mark.browser


def test_two_checkpoints_write_side_by_side_from_one_seed(page: Page) -> None:
    page.get_by_label("Beside it").select_option(OTHER)
    write(page, Max_tokens="24")
    wait_for_end(page)
    panes = page.locator("article")
    expect(panes).to_have_count(2)
    assert sorted(panes.locator("h2").all_text_contents()) == sorted([SERVED, OTHER])
    first, second = (panes.nth(i).locator("[role=listbox]").text_content() for i in range(2))
    # The same weights under two names: the same seed must write the same.
    assert first == second
    assert first
    boxes = [panes.nth(i).bounding_box() for i in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]


def test_the_api_gives_the_teachers_own_log_probabilities(server: str, gateway: str) -> None:
    tokenizer = TextTokenizer(TEACHER)
    prompt_ids, token_ids = tokenizer.encode(PROMPT), tokenizer.encode("    return 0\n")
    body = {"prompt": PROMPT, "token_ids": token_ids, "top": 3}
    answer = httpx.post(f"{server}/teacher", json=body, trust_env=False, timeout=60).json()
    with SyncTeacherClient(gateway) as client:
        rows = client.score([*prompt_ids, *token_ids], 3, "float32")
    assert answer["teacher"] == "stdlib-teacher"
    assert len(answer["tokens"]) == len(token_ids)
    for i, token in enumerate(answer["tokens"]):
        row = len(prompt_ids) + i - rows.first_position
        assert token["token_id"] == token_ids[i]
        assert math.isclose(token["logprob"], float(rows.realised_logprobs[row]), abs_tol=1e-6)
        assert token["rank"] == int(rows.realised_ranks[row])
        assert [other["token_id"] for other in token["top"]] == rows.ids[row, :3].tolist()
        assert [other["token"] for other in token["top"]] == tokenizer.decode_each(rows.ids[row, :3].tolist())
    # Without a prompt nothing stands before the first token.
    alone = httpx.post(f"{server}/teacher", json=body | {"prompt": []}, trust_env=False, timeout=60).json()
    assert alone["tokens"][0] is None
    assert alone["tokens"][1] is not None


def test_the_teacher_judges_each_token_and_says_what_it_would_have_written(page: Page) -> None:
    write(page, Max_tokens="48", Seed="2", Temperature="1")
    wait_for_end(page)
    ask = page.get_by_role("button", name="Ask the teacher")
    ask.click()
    status = page.locator(".teacher").get_by_role("status")
    expect(status).to_contain_text("stdlib-teacher finds")
    expect(status).to_contain_text("of 48 tokens")
    expect(ask).to_be_hidden()
    others = page.locator("rt")
    same = int(status.text_content().split("the same at ")[1].split(" ")[0])  # type: ignore[union-attr]
    assert 0 < same < 48
    expect(others).to_have_count(48 - same)

    node = page.locator("[role=option]:has(rt)").first
    label = node.get_attribute("aria-label") or ""
    assert "the teacher would have written" in label
    node.hover()
    box = page.get_by_role("tooltip")
    expect(box).to_contain_text("Student:")
    expect(box).to_contain_text("Teacher:")
    likeliest = box.locator("table").nth(1).locator("tbody tr").first
    expect(likeliest).to_contain_text(node.locator("rt").text_content() or "?")

    before = page.locator("[role=option]").evaluate_all("nodes => nodes.map(n => n.className)")
    page.get_by_label("colours show the teacher’s probability").check()
    after = page.locator("[role=option]").evaluate_all("nodes => nodes.map(n => n.className)")
    assert before != after
    page.get_by_label("what it would have written stands above").uncheck()
    expect(others).to_have_count(0)


def test_a_teacher_of_another_tokenizer_says_so(browser: Browser, server: str) -> None:
    with opened(browser, server, expected_complaints=("Failed to load resource",)) as page:
        page.locator("#write").get_by_label("Checkpoint", exact=True).select_option(STRANGER)
        write(page, Max_tokens="16", Seed="2")
        wait_for_end(page)
        page.get_by_role("button", name="Ask the teacher").click()
        problem = page.locator(".teacher").get_by_role("alert")
        expect(problem).to_contain_text(f"has another tokenizer than {STRANGER}")
        expect(page.locator("rt")).to_have_count(0)


@pytest.mark.parametrize("has_gateway", [False, True])
def test_without_a_gateway_there_is_no_panel_and_with_an_absent_one_a_sentence(
    browser: Browser, children: Children, has_gateway: bool
) -> None:
    target = {"GATEWAY_TARGET": "127.0.0.1:9"} if has_gateway else {}
    with (
        serving(children, f"inference-{has_gateway}", FALLBACK_RUN=SHIPPED.parent, **target) as url,
        opened(browser, url, expected_complaints=("Failed to load resource",)) as page,
    ):
        write(page, Max_tokens="8", Seed="2")
        wait_for_end(page)
        ask = page.get_by_role("button", name="Ask the teacher")
        if has_gateway:
            ask.click()
            expect(page.locator(".teacher").get_by_role("alert")).to_contain_text("no teacher-gateway answers")
        else:
            expect(ask).to_have_count(0)
