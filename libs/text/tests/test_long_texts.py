import random
from pathlib import Path

import numpy as np
import pytest

from latentforge.text import vocabulary
from latentforge.text.errors import TextError
from latentforge.text.long_texts import BORDERS, CutText, pieces_of, usable_borders
from latentforge.text.tokenizer import TextTokenizer
from tests.tokenizer_kinds import KINDS, NASTY, write_tokenizer

SHIPPED = Path(__file__).parents[3] / "models" / "stdlib-teacher"
WORDS = (
    "the",
    "fox;",
    "x1",
    "(y)",
    "it's",
    "東京。",
    "дом",
    "é",
    "if",
    "9",
    "ﬁ",
    "e\u0301",
    "HTTP",
    "…",
    "don't",
    "_z",
)
BETWEEN = (" ", " ", " ", "\n", "\n", "  ", " \n", "\n\n", "\n    ", "\t", "\r\n", "\u00a0", "")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    root = tmp_path_factory.mktemp("kinds")
    made = {kind: TextTokenizer(write_tokenizer(kind, root / kind), eos_id=1, pad_id=2) for kind in KINDS}
    return made | {"shipped": TextTokenizer(SHIPPED)}


def nasty_text(seed: int, words: int = 600) -> str:
    choose = random.Random(seed)
    pool = [*WORDS, *WORDS, *WORDS, *NASTY]
    return "".join(choose.choice(pool) + choose.choice(BETWEEN) for _ in range(words))


@pytest.mark.parametrize("kind", [*KINDS, "shipped"])
def test_pieces_encode_to_the_ids_of_the_whole_text(tokenizers: dict[str, TextTokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    borders = tokenizer._borders
    num_pieces = 0
    for seed in range(30):
        text = nasty_text(seed)
        ids: list[int] = []
        # As many cuts as there can be.
        for piece in pieces_of(text, borders, piece=1, reach=len(text)):
            assert not piece.forced
            ids += tokenizer.encode(piece.text)[piece.num_anchor_ids :]
            num_pieces += 1
        assert ids == tokenizer.encode(text)
    # Something was cut: of every kind of tokenizer, long texts stay bounded.
    assert num_pieces > 30 * 50


def test_a_kind_of_border_that_a_token_spans_is_not_used(tokenizers: dict[str, TextTokenizer]) -> None:
    encode = tokenizers["byte-level"].encode
    newline, blank = BORDERS
    assert [b for b, _ in usable_borders(encode, [b"ab", b" the", b"\n"])] == [newline, blank]
    assert [b for b, _ in usable_borders(encode, [b"ab", b";\nx"])] == [blank]
    assert [b for b, _ in usable_borders(encode, [b"of the"])] == [newline]


def test_a_tokenizer_that_looks_across_a_border_is_found_out_by_trying() -> None:
    # It tells the last character from the others, wherever the text ends.
    assert usable_borders(lambda text: [*map(ord, text[:-1]), -1], [b"a"]) == []


def test_a_text_without_borders_is_cut_where_it_must_be_and_says_so(tokenizers: dict[str, TextTokenizer]) -> None:
    text = "QUJD" * 1000
    pieces = list(pieces_of(text, tokenizers["shipped"]._borders, piece=500, reach=1000))
    assert "".join(piece.text for piece in pieces) == text
    assert [len(piece.text) for piece in pieces] == [1000, 1000, 1000, 1000]
    assert [piece.forced for piece in pieces] == [True, True, True, False]


def test_short_texts_are_left_whole(tokenizers: dict[str, TextTokenizer]) -> None:
    text = "a b\nc " * 10
    assert list(pieces_of(text, tokenizers["shipped"]._borders, piece=30)) == [CutText(text)]


def test_long_encoding_gives_each_text_its_own_ids(
    tokenizers: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["shipped"]
    monkeypatch.setattr(vocabulary, "_CHARACTERS_AT_ONCE", 100_000)
    # Shorter than a piece, longer than several batches, and without any border.
    texts = ["", "short", nasty_text(1, 100_000), "", "Zm9v" * 200_000, "last"]
    found = list(tokenizer.encode_long(texts))
    assert [ids.dtype == np.uint32 for ids, _ in found] == [True] * 6
    for text, (ids, forced) in zip(texts, found, strict=True):
        if not forced:
            assert ids.tolist() == tokenizer.encode(text)
    assert [forced > 0 for _, forced in found] == [False, False, False, False, True, False]
    assert tokenizer.decode(found[4][0].tolist()) == texts[4]


def test_a_rendered_chat_keeps_its_control_tokens(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["shipped"]
    chat = [{"role": "user", "content": nasty_text(2, 60_000)}, {"role": "assistant", "content": "b"}]
    [(ids, forced)] = tokenizer.encode_long([tokenizer.rendered(chat)], rendered=True)
    assert forced == 0
    assert ids.tolist() == tokenizer.encode_chat(chat)


def test_half_of_a_surrogate_pair_is_named(tokenizers: dict[str, TextTokenizer]) -> None:
    with pytest.raises(TextError, match="half of a surrogate pair"):
        list(tokenizers["shipped"].encode_long(["a\ud83d"]))
