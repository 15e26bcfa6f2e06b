from pathlib import Path

import pytest

from latentforge.gateway.tokenizer import ChatError, TeacherTokenizer, TextStream
from latentforge.text.fingerprint import tokenizer_fingerprint


@pytest.fixture
def tokenizer(random_teacher: Path) -> TeacherTokenizer:
    return TeacherTokenizer(random_teacher)


def test_text_comes_back_as_it_was(tokenizer: TeacherTokenizer, random_teacher: Path) -> None:
    text = "def f(x):\n\treturn 'żółć 🙂'\n<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.fingerprint == tokenizer_fingerprint(random_teacher)


def test_a_chat_is_rendered_with_the_template(tokenizer: TeacherTokenizer) -> None:
    ids = tokenizer.encode_chat([("user", "hi")])
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    finished = tokenizer.encode_chat([("user", "hi"), ("assistant", "yes")])
    assert tokenizer.decode(finished) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


def test_a_tokenizer_without_template_refuses_chats(random_teacher: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((random_teacher / name).read_bytes())
    with pytest.raises(ChatError, match="no chat template"):
        TeacherTokenizer(tmp_path).encode_chat([("user", "hi")])


@pytest.mark.parametrize("text", ["plain", "żółć 🙂 end", "🙂", "", "a" * 300])
def test_streamed_text_is_the_whole_text_and_never_half_a_character(tokenizer: TeacherTokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    parts = [stream.push(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(parts) + stream.flush() == text
    assert not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: TeacherTokenizer) -> None:
    stray = tokenizer.encode("🙂")[:1] * 100
    stream = TextStream(tokenizer)
    parts = [stream.push(token_id) for token_id in stray]
    assert set("".join(parts) + stream.flush()) == {"\ufffd"}
    # It does not wait for the end with them.
    assert any(parts)


def test_special_tokens_give_no_text(tokenizer: TeacherTokenizer) -> None:
    stream = TextStream(tokenizer)
    assert "".join(stream.push(i) for i in tokenizer.encode("a<|im_end|>b")) == "ab"
    assert tokenizer.special_id("<|im_end|>") == 3
    assert tokenizer.special_id("a") is None
