import pytest

from benchmarks.drafter.origins import Stretch, accepted_tokens, stretches
from benchmarks.drafter.passes import Pass


def passes(*written: int) -> list[Pass]:
    return [Pass(0.0, 0.0, 0.0, ((None if not at else 8, tokens),)) for at, tokens in enumerate(written)]


def test_the_last_token_of_a_pass_is_the_teachers() -> None:
    assert accepted_tokens(passes(1, 3, 1, 2), 7) == [False, True, True, False, False, True, False]


def test_what_a_pass_gives_beyond_the_end_is_left_out() -> None:
    assert accepted_tokens(passes(1, 4), 3) == [False, True, True]


def test_a_prompt_in_pieces_gives_nothing_before_its_end() -> None:
    assert accepted_tokens(passes(0, 0, 1, 2), 3) == [False, True, False]


def test_passes_that_do_not_say_are_refused() -> None:
    with pytest.raises(ValueError, match="gave 4 tokens of a text of 5"):
        accepted_tokens(passes(1, 3), 5)
    with pytest.raises(ValueError, match="over 2 texts"):
        accepted_tokens([Pass(0.0, 0.0, 0.0, ((8, 2), (8, 1)))], 2)


def test_a_text_comes_in_parts_of_one_origin() -> None:
    ids = {1: b"a", 2: b"b ", 3: "\u20ac".encode()[:1], 4: "\u20ac".encode()[1:], 5: None}
    found = stretches([1, 2, 3, 4, 5, 1], [False, True, True, False, True, True], ids)
    # The character of two tokens is where it is whole; a control token is no text.
    assert found == [Stretch("a", False), Stretch("b ", True), Stretch("\u20ac", False), Stretch("a", True)]
    assert stretches([5], [True], ids) == []
