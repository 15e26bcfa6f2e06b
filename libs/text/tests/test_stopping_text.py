import random

import pytest

from latentforge.text.stopping_text import StoppingText
from latentforge.text.tokenizer import TextTokenizer


def _streamed(tokenizer: TextTokenizer, text: str, stop: list[str]) -> tuple[str, list[str], int]:
    """The text, its parts, and how many tokens it took; the tokenizer's tokens are single bytes."""
    stream, parts = StoppingText(tokenizer, stop), []
    for count, token_id in enumerate(tokenizer.encode(text), 1):
        parts.append(stream.push(token_id))
        if stream.is_over:
            return "".join(parts) + stream.flush(), parts, count
    return "".join(parts) + stream.flush(), parts, len(text)


@pytest.mark.parametrize(
    ("text", "stop", "before", "taken"),
    [
        ("one two three", ["two"], "one ", 7),
        ("one two three", ["four", "three", "two"], "one ", 7),
        ("one two three", [], "one two three", 13),
        # What looked like the beginning of one is text after all, at the end too.
        ("ababac", ["abac"], "ab", 6),
        ("aab aabb", ["abb"], "aab a", 8),
        ("one tw", ["two"], "one tw", 6),
        # The one that is complete first, and it may begin a text.
        ("abcd", ["abcd", "bc"], "a", 3),
        ("\n\nx", ["\n\n"], "", 2),
        ("żółć 🙂!", ["🙂"], "żółć ", 13),
    ],
)
def test_a_text_ends_before_the_first_stop_string(
    tokenizer: TextTokenizer, text: str, stop: list[str], before: str, taken: int
) -> None:
    found, parts, count = _streamed(tokenizer, text, stop)
    assert (found, count) == (before, taken)
    assert before.startswith("".join(parts))


def test_text_is_given_as_soon_as_it_cannot_be_part_of_a_stop_string(tokenizer: TextTokenizer) -> None:
    _, parts, _ = _streamed(tokenizer, "abcabd", ["abd"])
    assert parts == ["", "", "abc", "", "", ""]


def test_it_finds_what_a_search_of_the_whole_text_finds(tokenizer: TextTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab\n", k=30))
        stop = ["".join(rng.choices("ab\n", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
        ends = {text.find(word) + len(word): text.find(word) for word in sorted(stop, key=len) if word in text}
        expected = text[: ends[min(ends)]] if ends else text
        assert _streamed(tokenizer, text, stop)[0] == expected, (text, stop)


@pytest.mark.parametrize(
    ("text", "stop", "before", "num_read"),
    [
        ("hello world", ["xyz"], "hello world", None),
        ("hello world", ["world", "lo"], "hel", 5),
        ("hello", ["h"], "", 1),
        ("né!", ["!"], "né", 4),
        ("aab aabb", ["aabb"], "aab ", 8),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_tokens_are_read_up_to_a_stop_string_however_many_come_at_once(
    tokenizer: TextTokenizer, text: str, stop: list[str], before: str, num_read: int | None, step: int
) -> None:
    ids, stream, parts, found = tokenizer.encode(text), StoppingText(tokenizer, stop), [], None
    for first in range(0, len(ids), step):
        count = stream.read(ids[first : first + step])
        parts.append(stream.take())
        if count is not None:
            found = first + count
            break
    assert ("".join(parts) + stream.flush(), found) == (before, num_read)
