import json
from pathlib import Path

import numpy as np
import pytest

from latentforge.text.errors import TextError
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData, PackedMeta, check_data
from latentforge.text.packing import pack_jsonl
from latentforge.text.tokenizer import TextTokenizer
from tests.tokenizer_kinds import write_tokenizer


def write(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


def pack(source: Path, out: Path, tokenizer: TextTokenizer, length: int = 8, k: int = 4) -> PackedMeta:
    return pack_jsonl(source, out, tokenizer, sequence_length=length, chunk_size=k, split="train")


def test_documents_follow_one_another_with_end_of_text_and_the_rest_is_dropped(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "hello"}, {"text": ""}, {"text": "a longer one"}, {"text": "x"})
    meta = pack(source, tmp_path / "out", tokenizer)
    data = PackedData(tmp_path / "out")
    stream = [i for t in ("hello", "a longer one", "x") for i in (*tokenizer.encode_texts([t])[0], tokenizer.eos_id)]
    assert len(stream) == 21
    assert data.tokens.tolist() == stream[:16]
    assert data.sequence(1).tolist() == stream[8:16]
    assert data.document_starts().tolist() == [0, 6]
    assert (meta.num_sequences, meta.num_documents, meta.num_empty_documents, meta.num_dropped_tokens) == (2, 2, 1, 5)


def test_chats_are_rendered_with_the_template_and_texts_never_make_special_tokens(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    source = write(tmp_path / "d.jsonl", chat, {"text": "<|im_end|><|pad|>"})
    pack(source, tmp_path / "out", tokenizer, length=4, k=2)
    tokens = PackedData(tmp_path / "out").tokens.tolist()
    assert tokens[0] == 2
    assert tokens.count(3) == 1
    assert tokens.count(tokenizer.pad_id) == 0
    assert tokenizer.decode(tokens[: tokens.index(0)]) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.fixture(scope="session")
def bos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("metaspace", tmp_path_factory.mktemp("bos") / "metaspace")


def test_every_sequence_begins_with_bos_where_the_tokenizers_do(tmp_path: Path, bos_folder: Path) -> None:
    tokenizer = TextTokenizer(bos_folder)
    texts = ["The lazy dog jumps", "", "x", "over the quick brown fox", "a", "b: c, x"]
    source = write(tmp_path / "d.jsonl", *({"text": text} for text in texts))
    for length in (2, 3, 4, 8, 16):
        meta = pack(source, tmp_path / "out", tokenizer, length=length, k=1)
        data = PackedData(tmp_path / "out")
        assert meta.bos_id == data.meta.bos_id == tokenizer.bos_id == 1
        sequences = data.tokens.reshape(-1, length)
        assert (sequences[:, 0] == 1).all()
        assert not (sequences[:, 1:] == 1).any()
        # Without them it is the same stream of documents.
        stream = [i for t in texts if t for i in (*tokenizer.encode(t), tokenizer.eos_id)]
        kept = sequences[:, 1:].reshape(-1).tolist()
        assert kept == stream[: len(kept)]
        for start, text in zip(data.document_starts().tolist(), filter(None, texts), strict=False):
            assert start % length > 0
            assert data.tokens[start] == tokenizer.encode(text)[0]
        # The last one may have lost its end.
        *whole, _ = data.document_beginnings(100)
        assert whole == [tokenizer.encode(text) for text in texts if text][: len(whole)]
        assert [ids[:3] for ids in whole] == list(data.document_beginnings(3))[: len(whole)]
        in_tail = data.document_starts() >= length
        tail = [ids for ids, there in zip(data.document_beginnings(2), in_tail, strict=True) if there]
        assert list(data.part(1, len(data)).document_beginnings(2)) == tail


def test_a_chat_that_begins_a_sequence_has_one_bos(tmp_path: Path, bos_folder: Path) -> None:
    tokenizer = TextTokenizer(bos_folder)
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in ("a", "a")]
    source = write(tmp_path / "d.jsonl", *({"messages": chat} for chat in chats))
    first, second = tokenizer.encode_chats(chats)
    assert first[0] == 1
    length = len(first) + 1
    pack(source, tmp_path / "out", tokenizer, length=length, k=1)
    data = PackedData(tmp_path / "out")
    assert data.sequence(0).tolist() == [*first, tokenizer.eos_id]
    assert data.sequence(1).tolist() == [*second, tokenizer.eos_id]
    assert data.document_starts().tolist() == [0, length]
    assert list(data.document_beginnings(100)) == [first, second]


def test_bos_can_be_left_out_and_data_says_so(tmp_path: Path, bos_folder: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "The lazy dog jumps over the fox"})
    without = TextTokenizer(bos_folder, bos=False)
    assert pack(source, tmp_path / "out", without).bos_id is None
    data = PackedData(tmp_path / "out")
    assert 1 not in data.tokens
    check_data(data, without, 4)
    with pytest.raises(TextError, match=r"packed with bos_id None, .* has 1; pack it again"):
        check_data(data, TextTokenizer(bos_folder), 4)
    # The same folder is not taken for the same packing.
    assert pack(source, tmp_path / "out", TextTokenizer(bos_folder)).bos_id == 1


def test_data_of_an_older_version_says_what_to_do(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    pack(write(tmp_path / "d.jsonl", {"text": "hello world"}), tmp_path / "out", tokenizer)
    path = tmp_path / "out" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["bos_id"]
    path.write_text(json.dumps(meta | {"format_version": 1}))
    with pytest.raises(TextError, match=r"format_version.*make the folder again with `trainer pack`"):
        PackedData(tmp_path / "out")


def test_a_chat_that_the_template_refuses_is_named_by_its_line(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('odd') if messages[0].content == 'b' }}a")
    chats = [{"messages": [{"role": "user", "content": content}]} for content in ("a", "b", "c")]
    source = write(tmp_path / "d.jsonl", {"text": "hello"}, *chats)
    tokenizer = TextTokenizer(tmp_path, eos_id=0, pad_id=1)
    with pytest.raises(TextError, match=r"d\.jsonl:3: the chat template refuses these messages: odd"):
        pack(source, tmp_path / "out", tokenizer)


@pytest.mark.parametrize("length", [10, 4, 6])
def test_a_length_that_k_does_not_divide_twice_is_refused_with_neighbours(
    tmp_path: Path, tokenizer: TextTokenizer, length: int
) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "hello world, hello"})
    with pytest.raises(TextError, match=f"sequence_length={length} is not a multiple .* of K=4; set it to 8 or 12"):
        pack(source, tmp_path / "out", tokenizer, length=length)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "fine and long enough"}\n{"text": 1}\n', "d.jsonl:2: "),
        ("", "has no documents"),
        ('{"text": ""}\n', "has no documents"),
        ('{"text": "ab"}\n', "has 3 tokens, fewer than one sequence of 8"),
    ],
)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, tokenizer: TextTokenizer, content: str, message: str) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text(content)
    with pytest.raises(TextError, match=message):
        pack(source, tmp_path / "out", tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_failed_repack_keeps_the_old_data(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "hello world"})
    pack(source, tmp_path / "out", tokenizer)
    write(source, {"wrong": 1})
    with pytest.raises(TextError):
        pack(source, tmp_path / "out", tokenizer)
    assert len(PackedData(tmp_path / "out")) == 1


def test_the_same_packing_is_kept_and_another_replaces_it(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "hello world, hello world"})
    pack(source, tmp_path / "out", tokenizer)
    before = (tmp_path / "out" / "tokens.bin").stat().st_ino
    pack(source, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "tokens.bin").stat().st_ino == before
    assert pack(source, tmp_path / "out", tokenizer, k=2).chunk_size == 2


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "hello world"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(TextError, match="no packed data"):
        pack(source, tmp_path / "out", tokenizer)


def test_torn_data_is_not_loaded(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    pack(write(tmp_path / "d.jsonl", {"text": "hello world"}), tmp_path / "out", tokenizer)
    tokens = tmp_path / "out" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(TextError, match=r"has 14 bytes, meta.json says 1 x 8 uint16"):
        PackedData(tmp_path / "out")


def test_large_vocabularies_take_four_bytes(tmp_path: Path, tokenizer_folder: Path) -> None:
    big = TextTokenizer(tokenizer_folder, pad_id=70_000)
    pack(write(tmp_path / "d.jsonl", {"text": "hello world"}), tmp_path / "out", big)
    assert PackedData(tmp_path / "out").tokens.dtype == np.uint32


def test_data_of_another_tokenizer_or_k_is_refused_with_both_values(
    packed: PackedData, tokenizer: TextTokenizer, tokenizer_folder: Path
) -> None:
    check_data(packed, tokenizer, 8)
    with pytest.raises(TextError, match=r"sequences of 32 .* which K=5 does not divide"):
        check_data(packed, tokenizer, 5)
    with pytest.raises(TextError, match=r"pad_id 1, .* has 259"):
        check_data(packed, TextTokenizer(tokenizer_folder, pad_id=259), 4)


def test_a_part_in_which_no_document_begins_has_no_beginnings(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    pack(write(tmp_path / "d.jsonl", {"text": "hello world, hello"}), tmp_path / "out", tokenizer)
    data = PackedData(tmp_path / "out")
    assert list(data.part(1, 2).document_beginnings(4)) == []
    assert list(data.part(0, 1).document_beginnings(4)) == [tokenizer.encode("hell")]


def test_the_tail_is_held_out(packed: PackedData) -> None:
    train, held_out = split_tail(packed)
    assert len(train) + len(held_out) == len(packed)
    assert held_out.sequence(0).tolist() == packed.sequence(len(train)).tolist()
    with pytest.raises(TextError, match="none is left to hold out"):
        split_tail(packed.part(0, 1))
