import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latentforge.text import vocabulary
from latentforge.text.long_texts import PIECE, REACH
from latentforge.text.stopping import EncodingStoppedError, stoppable
from latentforge.text.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, write_tokenizer

SHIPPED = Path(__file__).parents[3] / "models" / "stdlib-teacher"
WORDS = ("the", "fox;", "x1 =", "it's", "東京。", "дом", "\n    return", "<|endoftext|>", "é", "\n")


@pytest.mark.parametrize("kind", ["shipped", *KINDS])
def test_a_long_text_that_may_be_stopped_has_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(SHIPPED if kind == "shipped" else write_tokenizer(kind, tmp_path), eos_id=1, pad_id=2)
    text = " ".join(random.Random(0).choices(WORDS, k=PIECE // 2))
    assert len(text) > 2 * PIECE
    with stoppable(threading.Event()):
        assert tokenizer.encode(text) == TextTokenizer(tokenizer.folder, eos_id=1, pad_id=2).encode(text)


@pytest.mark.parametrize("text", ["a" * (REACH + PIECE), "x y\n" * PIECE])
def test_one_without_borders_is_encoded_whole(text: str) -> None:
    tokenizer = TextTokenizer(SHIPPED)
    whole = tokenizer.encode(text)
    with stoppable(threading.Event()):
        assert tokenizer.encode(text) == whole


def test_a_stop_ends_it_with_the_piece_that_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, stopped, encode, lengths = TextTokenizer(SHIPPED), threading.Event(), vocabulary._encodings, []
    text = "one line of it\n" * PIECE
    with stoppable(stopped):
        tokenizer.encode("x y\n" * PIECE)

    def encodings(inner: Any, texts: Sequence[str]) -> list[Any]:
        lengths.append(sum(map(len, texts)))
        stopped.set()
        return encode(inner, texts)

    monkeypatch.setattr(vocabulary, "_encodings", encodings)
    with stoppable(stopped), pytest.raises(EncodingStoppedError):
        tokenizer.encode(text)
    assert len(lengths) == 1
    assert lengths[0] < 2 * PIECE
    with stoppable(stopped), pytest.raises(EncodingStoppedError):
        tokenizer.encode("short")
    assert len(lengths) == 1
