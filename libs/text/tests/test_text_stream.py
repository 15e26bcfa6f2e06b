from pathlib import Path

import pytest

from latentforge.text.text_stream import TextStream
from latentforge.text.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, write_tokenizer


@pytest.mark.parametrize("text", ["plain", "żółć 🙂 end", "🙂", "", "a" * 300])
def test_streamed_text_is_the_whole_text_and_never_half_a_character(tokenizer: TextTokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    parts = [stream.push(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(parts) + stream.flush() == text
    assert not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: TextTokenizer) -> None:
    stray = tokenizer.encode("🙂")[:1] * 100
    stream = TextStream(tokenizer)
    parts = [stream.push(token_id) for token_id in stray]
    assert set("".join(parts) + stream.flush()) == {"\ufffd"}
    # It does not wait for the end with them.
    assert any(parts)


def test_special_tokens_give_no_text(tokenizer: TextTokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("a<|im_end|>b", parse_special_tokens=True)
    assert "".join(stream.push(i) for i in ids) == "ab"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_goes_on_begins_with_its_blank(tmp_path: Path, kind: str) -> None:
    tokenizer = TextTokenizer(write_tokenizer(kind, tmp_path))
    whole = tokenizer.encode("The lazy dog")
    prompt = tokenizer.encode("The")
    assert whole[: len(prompt)] == prompt
    stream = TextStream(tokenizer)
    assert "".join(stream.push(i) for i in whole[len(prompt) :]) + stream.flush() == " lazy dog"
