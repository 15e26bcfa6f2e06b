import random
import re

import pytest

from latentforge.trainer.data.shared_words import SharedWords

KNOWN = "def known(a, b):\n    return a + b * 2\n"


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def runs(text: str, num: int) -> set[tuple[str, ...]]:
    return {tuple(words(text)[i : i + num]) for i in range(len(words(text)) - num + 1)}


def test_lines_that_a_shared_run_reaches_into_are_cut() -> None:
    text = "x = 1\nclass A:\n\n        def known(a, b):\n\n            return a + b * 2\n        y = 2\n"
    # The copy is indented, and has a blank line within.
    assert SharedWords([KNOWN], 14).cut_from(text) == "x = 1\nclass A:\n\n        y = 2\n"


@pytest.mark.parametrize("num_words", [13, 14])
def test_one_word_less_than_a_run_is_none(num_words: int) -> None:
    text = KNOWN.replace("2", "3")
    cut = SharedWords([KNOWN], num_words).cut_from(text)
    assert cut == (text if num_words == 14 else "")


def test_a_text_that_shares_nothing_comes_back_as_it_is() -> None:
    text = "a = 1\r\n\x0c\nb = 2\x0b\u2028c\n\n  d = 'known'"
    assert SharedWords([KNOWN], 3).cut_from(text) == text


def test_a_run_is_not_made_of_two_texts() -> None:
    shared = SharedWords(["a b c", "d e f"], 4)
    assert shared.cut_from("a b c d e f\n") == "a b c d e f\n"


def test_what_the_cut_brings_together_is_cut_as_well() -> None:
    shared = SharedWords(["a b c d e f", "p q r s"], 4)
    # Between "p q" and "r s" stands a run; without it they are one.
    assert shared.cut_from("x\np q\na b c d\nr s\ny\n") == "x\ny\n"


@pytest.mark.parametrize("num_words", [1, 2, 5])
def test_nothing_shared_is_left_of_random_texts_and_the_rest_is_in_order(num_words: int) -> None:
    rng = random.Random(num_words)
    held_out, text = ("".join(rng.choice("abcde") + rng.choice(" \n") for _ in range(120)) for _ in range(2))
    text = text.replace("a", "known") if num_words > 1 else text + "\nnew\n"
    cut = SharedWords([held_out], num_words).cut_from(text)
    assert not runs(cut, num_words) & runs(held_out, num_words)
    assert cut
    kept = iter(text.splitlines())
    assert all(line in kept for line in cut.splitlines())
