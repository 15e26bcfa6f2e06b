import json
from pathlib import Path
from typing import Any

import pytest

from latentforge.text.fingerprint import tokenizer_fingerprint

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "added_tokens": [{"id": 0, "content": "<|endoftext|>"}],
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}


def fingerprint(folder: Path, tokenizer: dict[str, Any], **dump: Any) -> str:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, **dump))
    return tokenizer_fingerprint(folder)


def test_ignores_what_does_not_change_ids(tmp_path: Path) -> None:
    reordered = dict(reversed(TOKENIZER.items())) | {"truncation": {"max_length": 5}, "version": "2.0"}
    reordered["model"] = TOKENIZER["model"] | {"merges": ["a b"]}
    assert fingerprint(tmp_path, TOKENIZER) == fingerprint(tmp_path, reordered, indent=4)


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": [{"id": 0, "content": "<|end|>"}]},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": TOKENIZER["model"] | {"vocab": {"a": 2, "b": 1, "ab": 3}}},
        {"model": TOKENIZER["model"] | {"merges": []}},
    ],
)
def test_changes_with_what_changes_ids(tmp_path: Path, change: dict[str, Any]) -> None:
    assert fingerprint(tmp_path, TOKENIZER) != fingerprint(tmp_path, TOKENIZER | change)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        tokenizer_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a readable"):
        tokenizer_fingerprint(tmp_path)
