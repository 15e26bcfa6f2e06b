from pathlib import Path

from latentforge.gateway.rpc.token_names import TokenNames
from latentforge.text.tokenizer import TextTokenizer


def test_no_two_tokens_have_one_name(random_teacher: Path) -> None:
    tokenizer = TextTokenizer(random_teacher)
    names = TokenNames(tokenizer, 300)
    assert len(set(names.table)) == len(names.table) == 300
    [a] = tokenizer.encode("a")
    first, second = tokenizer.encode("é")
    assert names.table[a] == "a"
    assert (names.table[first], names.table[second]) == ("bytes:\\xc3", "bytes:\\xa9")
    assert names.table[0] == "<|endoftext|>"
    assert names.table[299] == "token_id:299"


def test_offsets_say_where_in_the_text_a_token_begins(random_teacher: Path) -> None:
    tokenizer = TextTokenizer(random_teacher)
    names = TokenNames(tokenizer, 300)
    ids = [0, *tokenizer.encode("aé€b")]
    assert names.text(ids) == "<|endoftext|>aé€b"
    assert names.offsets(ids) == [0, 13, 14, 14, 15, 15, 15, 16]
