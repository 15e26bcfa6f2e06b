import pytest

from latentforge.inference.rest.completion import cut_at_stop, stop_rule


def decode(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "kept", "num_ids"),
    [
        ("hello world", [], "hello world", 11),
        ("hello world", ["xyz"], "hello world", 11),
        ("hello world", ["o"], "hell", 5),
        ("hello world", ["world", "lo"], "he" + "l", 5),
        ("hello", ["h"], "", 1),
        ("né!", ["é"], "n", 3),
    ],
)
def test_text_ends_before_its_first_stop_string_and_ids_with_it(
    text: str, stop: list[str], kept: str, num_ids: int
) -> None:
    ids = list(text.encode())
    assert cut_at_stop(decode, ids, stop) == (kept, ids[:num_ids])


def test_an_end_id_ends_text_and_ids_before_it_and_what_follows_is_not_looked_at() -> None:
    ids = list(b"ab\x00cd")
    assert cut_at_stop(decode, ids, [], frozenset({0, 99})) == ("ab", ids[:2])
    assert cut_at_stop(decode, ids, ["d"], frozenset({0})) == ("ab", ids[:2])
    assert cut_at_stop(decode, ids, ["b"], frozenset({0})) == ("a", ids[:2])
    rule = stop_rule(decode, [], frozenset({0}))
    assert rule is not None
    assert (rule(list(b"ab")), rule(ids)) == (False, True)


def test_there_is_no_rule_without_stop_strings() -> None:
    assert stop_rule(decode, []) is None
    rule = stop_rule(decode, ["ab"])
    assert rule is not None
    assert not rule(list(b"xa"))
    assert rule(list(b"xab"))
