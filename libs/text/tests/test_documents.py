from pathlib import Path

import pytest

from latentforge.text.documents import read_documents
from latentforge.text.errors import TextError


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ('{"txt": "a"}', 'neither "text" nor "messages"'),
        ('{"text": "a", "messages": []}', 'both "text" and "messages"'),
        ('{"text": 3}', '"text" is a JSON int'),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot', not one of system, user, assistant"),
        ('{"messages": [{"role": "user"}]}', 'a message without a string "content"'),
        ('{"text": "a", "id": ' + "9" * 4301 + "}", "a number of more than 4300 digits"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"text": "a\\ud83d b"}', '"text" is no text: \\ud83d at character 1 is half of a surrogate pair'),
        ('{"text": "\\udc00"}', "\\udc00 at character 0 is half"),
        ('{"messages": [{"role": "user", "content": "a\\ud83d"}]}', "a message is no text: \\ud83d at character 1"),
        ('{"messages": [{"role": "user", "content": "", "x": ["\\ud83d"]}]}', "a message is no text: \\ud83d"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_what_is_expected(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(TextError) as caught:
        list(read_documents(path))
    assert f"{path}, line 3: " in str(caught.value)
    assert what in str(caught.value)
    assert '{"text": "..."}' in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(TextError, match="line 1: not UTF-8"):
        list(read_documents(path))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nothing\.jsonl cannot be read"):
        list(read_documents(tmp_path / "nothing.jsonl"))
