from pathlib import Path

from benchmarks.drafter.differences import Difference
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.lossless_page import write_page
from benchmarks.drafter.lossless_run import DemoText, TakenSwap
from benchmarks.drafter.lossless_table import as_results, differences_of
from benchmarks.drafter.passes import Pass
from benchmarks.drafter.prompts import DrafterPrompt
from latentforge.text.tokenizer import TextTokenizer

TEACHER = Path("models/stdlib-teacher")
PROMPT = DrafterPrompt("python", "a < b", "nowhere", "MIT")


def written(ids: list[int], seconds: float, *per_pass: int) -> WrittenTexts:
    passes = [Pass(0.0, 0.0, 0.0, ((None if not at else 8, tokens),)) for at, tokens in enumerate(per_pass)]
    return WrittenTexts([ids], seconds, passes, [])


def text(parted: Difference | None = None) -> DemoText:
    ways = {"alone": written([5, 6, 7, 8, 9], 2.0, *[1] * 5), "student": written([5, 6, 7, 8, 9], 1.0, 1, 3, 1)}
    return DemoText(PROMPT, ways, {"student": parted})


def test_results_say_how_much_sooner_and_whether_the_texts_are_the_same() -> None:
    tie, other = (Difference(0, 3, 7, 8, kind=kind) for kind in ("tie", "other"))
    texts = [text(), text(tie), text(other)]
    found = {result.id: result for result in as_results(texts, TakenSwap("a", "b", tie), ["alone", "student"])}
    speed = found["speed_student"]
    assert (speed.value, speed.baseline_value, speed.ratio) == (5.0, 2.5, 2.0)
    # Four tokens behind the first one, in two passes.
    assert found["tokens_per_pass_student"].value == 2.0
    assert found["not_identical_student"].value == 1
    assert found["swap"].value == 0
    [*_, swap] = as_results(texts, TakenSwap("a", "b", other), ["alone", "student"])
    assert swap.value == 1


def test_where_texts_part_is_kept_with_the_text_and_the_gap() -> None:
    tie = Difference(0, 3, 7, 8, ((8, -1.0), (7, -1.1)), 0.1, "tie")
    kept = differences_of([text(), text(tie)], TakenSwap("a", "b", None))
    assert [(one["prompt"], one["position"], one["gap"]) for one in kept["student"]] == [(1, 3, 0.1)]
    assert "swap" not in kept
    assert differences_of([], TakenSwap("a", "b", tie))["swap"][0]["drafted"] == 8


def test_the_page_shows_whose_each_token_is(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(TEACHER)
    ids = tokenizer.encode("x = <b>")
    shown = DemoText(PROMPT, {"student": written(ids, 1.0, 1, len(ids) - 1)}, {})
    page = write_page(tmp_path / "made" / "page.html", [shown], "student", tokenizer).read_text(encoding="utf-8")
    assert f"{len(ids) - 2} of {len(ids)} tokens were drafts" in page
    first = tokenizer.decode(ids[:1])
    last = tokenizer.decode(ids[-1:]).replace(">", "&gt;")
    assert f'<span class="own">{first}</span><span class="accepted">' in page
    assert f'<span class="own">{last}</span></pre>' in page
    assert "<b>" not in page
