from collections.abc import Sequence
from pathlib import Path

import pytest

from latentforge.inference.rest.completion import StopWatch
from latentforge.text.tokenizer import TextTokenizer


@pytest.fixture
def tokenizer(tokenizer_json: str, tmp_path: Path) -> TextTokenizer:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return TextTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("hello world", ["xyz"], "hello world"),
        ("hello world", ["o"], "hell"),
        ("hello world", ["world", "lo"], "hel"),
        ("hello", ["h"], ""),
        ("né!", ["é"], "n"),
        ("né!", ["!"], "né"),
        ("def main():\n    return\n\n\ndef x", ["\n\n"], "def main():\n    return"),
        ("aab aabb", ["aabb"], "aab "),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_text_ends_before_its_first_stop_string_and_ids_with_it(
    tokenizer: TextTokenizer, text: str, stop: Sequence[str], kept: str, step: int
) -> None:
    ids = tokenizer.encode(text)
    watch = StopWatch(tokenizer, stop)
    num_kept = len(ids)
    for first in range(0, len(ids), step):
        if (count := watch(ids[first : first + step])) is not None:
            num_kept = first + count
            break
    assert watch.finish() == kept
    fewest = (num for num in range(len(ids) + 1) if any(word in tokenizer.decode(ids[:num]) for word in stop))
    assert num_kept == next(fewest, len(ids))
