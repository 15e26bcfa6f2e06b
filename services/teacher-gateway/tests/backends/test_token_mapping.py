import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.text.tokenizer import TextTokenizer

STDLIB = Path(__file__).parents[4] / "models" / "stdlib-teacher"
REPLACEMENT = "\ufffd".encode()


@pytest.fixture(scope="module")
def byte_level() -> tuple[TokenMapping, Tokenizer]:
    return TokenMapping(TextTokenizer(STDLIB)), Tokenizer.from_file(str(STDLIB / "tokenizer.json"))


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenMapping, Tokenizer]:
    """A vocabulary whose pieces lose their leading space when they are decoded alone."""
    pieces = [
        "<unk>",
        "<s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁the",
        "the",
        "▁a",
        "▁",
        "a",
        "é",
        "▁▁",
        "b",
    ]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenMapping(TextTokenizer(folder)), tokenizer


def renderings(token_id: int, own: bytes, tokenizer: Tokenizer) -> list[tuple[str, bytes | None]]:
    """(string, bytes) that servers are known to write for an id."""
    decoded = tokenizer.decode([token_id], skip_special_tokens=False)
    skipped = tokenizer.decode([token_id], skip_special_tokens=True)
    whole = own.decode("utf-8", "replace")
    escaped = "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
    strings = [decoded, skipped, whole]
    answers: list[tuple[str, bytes | None]] = [(s, None) for s in strings]
    answers += [(s, own) for s in [*strings, escaped]]
    return answers + [(s, s.encode()) for s in strings] + [(s, b"") for s in strings]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4095))
def test_every_rendering_of_a_byte_level_token_is_that_token_or_nothing(byte_level: Any, token_id: int) -> None:
    mapping, tokenizer = byte_level
    own = mapping.bytes_of(token_id)
    for text, data in renderings(token_id, own, tokenizer):
        assert mapping.id_of(text, data) in (token_id, None), (text, data)
    if REPLACEMENT not in own:
        assert mapping.id_of(tokenizer.decode([token_id], skip_special_tokens=False), own) == token_id


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 265))
def test_every_rendering_of_a_piece_is_that_piece_or_nothing(sentence_piece: Any, token_id: int) -> None:
    mapping, tokenizer = sentence_piece
    for text, data in renderings(token_id, mapping.bytes_of(token_id), tokenizer):
        assert mapping.id_of(text, data) in (token_id, None), (text, data)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=4), st.one_of(st.none(), st.binary(max_size=4)))
def test_whatever_is_found_has_exactly_what_was_written(byte_level: Any, text: str, data: bytes | None) -> None:
    mapping, _ = byte_level
    found = mapping.id_of(text, data)
    if found is not None:
        assert mapping.bytes_of(found) == (data or text.encode())


def test_bytes_of_half_a_character_are_found_and_its_string_is_not(byte_level: Any) -> None:
    mapping, tokenizer = byte_level
    half = tokenizer.token_to_id("Ã")
    assert mapping.id_of("\ufffd", b"\xc3") == half
    assert mapping.id_of("bytes:\\xc3", b"\xc3") == half
    assert mapping.id_of("\ufffd") is None
    # What a server writes that has only the string.
    assert mapping.id_of("\ufffd", REPLACEMENT) is None


def test_special_tokens_are_found_by_their_literal_only(byte_level: Any) -> None:
    mapping, _ = byte_level
    assert mapping.id_of("<|im_end|>") == mapping.id_of("<|im_end|>", b"<|im_end|>") == 3
    assert mapping.id_of("") is None
    assert mapping.id_of("", b"<|im_end|>") is None


def test_a_string_that_contradicts_its_bytes_is_not_believed(byte_level: Any) -> None:
    mapping, _ = byte_level
    assert mapping.id_of("a") is not None
    assert mapping.id_of("a", b"b") is None
    assert mapping.id_of("\ud800") is None


def test_a_string_that_two_pieces_share_stands_for_neither(sentence_piece: Any) -> None:
    mapping, tokenizer = sentence_piece
    assert tokenizer.decode([tokenizer.token_to_id("▁the")]) == "the"
    assert mapping.id_of("the") is mapping.id_of("the", b"the") is None
    assert mapping.id_of(" the", b" the") == tokenizer.token_to_id("▁the")
    # <0x62> and b are the same byte.
    assert mapping.id_of("b") is None


def test_the_replacement_character_itself_is_never_found(tmp_path: Path) -> None:
    content = json.loads((STDLIB / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    added = len(vocabulary)
    vocabulary["ï¿½"] = added
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    mapping = TokenMapping(TextTokenizer(tmp_path))
    assert mapping.bytes_of(added) == REPLACEMENT
    assert mapping.id_of("\ufffd", REPLACEMENT) is None
    assert mapping.num_ids == added + 1


def test_a_lossy_string_is_not_found_even_where_one_token_alone_has_it(tmp_path: Path) -> None:
    content = json.loads((STDLIB / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    added = len(vocabulary)
    vocabulary["aÃ"] = added
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    mapping = TokenMapping(TextTokenizer(tmp_path))
    assert mapping.id_of("a\ufffd") is None
    assert mapping.id_of("a\ufffd", "a\ufffd".encode()) is None
    assert mapping.id_of("a\ufffd", b"a\xc3") == added
