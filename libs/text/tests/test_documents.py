import json
from pathlib import Path

import pytest

from latentforge.text.errors import TextError
from latentforge.text.text_source import read_documents


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ('{"txt": "a"}', 'neither "text" nor "messages"'),
        ('{"text": "a", "messages": []}', 'both "text" and "messages"'),
        ('{"text": 3}', '"text" is a JSON int'),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "'robot', not one of system, user, assistant, tool"),
        ('{"messages": [{"role": "user"}]}', 'a message without a string "content" or'),
        ('{"messages": ["a"]}', "a message is a JSON str, not an object"),
        (
            '{"messages": [{"role": "user", "content": null}]}',
            'a message without a string "content" or a list of parts',
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
            "a content part of type 'image_url': only",
        ),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "a content part of type 'str'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', 'type "text" without a string "text"'),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud83d"}]}]}',
            "a message is no text: \\ud83d",
        ),
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
    assert f"{path}:3: " in str(caught.value)
    assert what in str(caught.value)
    assert '{"text": "..."}' in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(TextError, match=r"data\.jsonl:1: not UTF-8"):
        list(read_documents(path))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"nothing\.jsonl cannot be read"):
        list(read_documents(tmp_path / "nothing.jsonl"))


def test_chats_may_have_tools_and_content_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
        {"role": "assistant", "content": "4."},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    [document] = read_documents(path)
    assert document.messages is not None
    assert [m["content"] for m in document.messages] == ["What is 2+2?", "", "4", "4."]
    assert document.messages[1]["tool_calls"] == [call]
    assert document.words == "What is 2+2?\n\n4\n4."
