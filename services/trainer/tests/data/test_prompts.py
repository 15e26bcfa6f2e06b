import json
from pathlib import Path
from typing import Any

import pytest

from latentforge.text.held_out import SplitSource, split_tail
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.text.text_source import TextSource
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.data.prompts import choose_prompts
from latentforge.trainer.errors import TrainerError


@pytest.fixture
def packed_of(tmp_path: Path, tokenizer: TextTokenizer) -> Any:
    def make(*documents: dict[str, Any], keep_source: bool = True, length: int = 16) -> PackedData:
        source = tmp_path / "documents.jsonl"
        source.write_text("".join(json.dumps(d) + "\n" for d in documents))
        pack_jsonl(source, tmp_path / "packed", tokenizer, sequence_length=length, chunk_size=4, split="train")
        return PackedData(tmp_path / "packed", SplitSource(TextSource.of(source), "train") if keep_source else None)

    return make


def chosen(data: PackedData, run: Any, limit: int = 200, **options: Any) -> list[Any]:
    return [p.messages for p in choose_prompts(data, "train", run.recipe, run.tokenizer, limit).prompts]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_chat_is_asked_up_to_its_last_assistant_turn(packed_of: Any, make_run: Any) -> None:
    a, b, c = turn("user", "a"), turn("assistant", "b"), turn("user", "c")
    documents = [[turn("system", "s"), a, b, c, turn("assistant", "d")], [a, b, b], [c], [b, c, b], [b]]
    found = chosen(packed_of(*({"messages": m} for m in documents)), make_run())
    assert sorted(found) == sorted(
        [
            (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")),
            (("user", "a"),),
            (("user", "c"),),
            (("assistant", "b"), ("user", "c")),
        ]
    )


def test_a_text_is_asked_by_its_first_tokens(packed_of: Any, make_run: Any) -> None:
    # The fourth byte is the first of two.
    assert chosen(packed_of({"text": "abcdefghijklmnop"}), make_run()) == [(("user", "Go\n\nabcd"),)]
    assert chosen(packed_of({"text": "abc\u00e9defghijklmn"}), make_run()) == [(("user", "Go\n\nabc"),)]


def test_packed_documents_give_the_same_prompts_as_their_file(packed_of: Any, make_run: Any) -> None:
    documents = [{"text": f"{i}{i}{i}{i}{i}{i}{i}"} for i in range(8)]
    run = make_run(overrides={"teacher.generate.prompts": 8})
    from_file = chosen(packed_of(*documents), run)
    assert sorted(from_file) == sorted(chosen(packed_of(*documents, keep_source=False), run))
    assert len(from_file) == 8


def test_the_parts_of_packed_data_share_no_prompt(packed_of: Any, make_run: Any) -> None:
    data = packed_of(*({"text": chr(97 + i) * 6} for i in range(20)), keep_source=False, length=8)
    run = make_run(overrides={"teacher.generate.prompts": 100})
    everything = chosen(data, run)
    train, held_out = (chosen(part, run) for part in split_tail(data, 40))
    assert not set(train) & set(held_out)
    assert len(held_out) > 3
    # A document that begins in one part and ends in the other belongs to the first.
    assert sorted(train + held_out) == sorted(everything)


def test_documents_that_begin_alike_are_one_prompt_and_not_asked_in_both_splits(packed_of: Any, make_run: Any) -> None:
    data = packed_of(*({"text": f"{'same' if i % 2 else 'unlike'[i:] + 'xyz'} {i}"} for i in range(6)))
    run = make_run()
    held_out = choose_prompts(data, "held-out", run.recipe, run.tokenizer, 200).prompts
    assert len({p.messages for p in held_out}) == len(held_out) == 3
    train = choose_prompts(data, "train", run.recipe, run.tokenizer, 200, held_out).prompts
    assert [p.messages for p in train] == [
        p.messages
        for p in choose_prompts(data, "train", run.recipe, run.tokenizer, 200).prompts
        if p.messages not in {h.messages for h in held_out}
    ]


def test_the_choice_is_a_function_of_the_seed(packed_of: Any, make_run: Any) -> None:
    data = packed_of(*({"text": f"document {i}"} for i in range(40)))
    overrides = {"teacher.generate.prompts": 10, "teacher.generate.prompt_tokens": 11}
    first = choose_prompts(data, "train", make_run(overrides=overrides).recipe, make_run().tokenizer, 200)
    again = choose_prompts(data, "train", make_run(overrides=overrides).recipe, make_run().tokenizer, 200)
    other = make_run(overrides=overrides | {"teacher.generate.seed": 1}).recipe
    assert first == again
    assert len({p.messages for p in first.prompts}) == len({p.seed for p in first.prompts}) == 10
    assert all(0 <= p.seed < 2**31 for p in first.prompts)
    assert {p.messages for p in choose_prompts(data, "train", other, make_run().tokenizer, 200).prompts} != {
        p.messages for p in first.prompts
    }


def test_copies_are_asked_once_and_what_does_not_fit_is_counted(packed_of: Any, make_run: Any) -> None:
    run = make_run()
    long = {"messages": [turn("user", "x" * 300)]}
    found = choose_prompts(
        packed_of({"text": "same text"}, {"text": "same text"}, long, {"text": " "}),
        "train",
        run.recipe,
        run.tokenizer,
        200,
    )
    assert (len(found.prompts), found.num_passed_over) == (1, 2)


def test_nothing_to_ask_says_what_to_give(packed_of: Any, make_run: Any) -> None:
    run = make_run()
    with pytest.raises(TrainerError, match=r"none of the train documents .* makes a prompt of at most 190 tokens"):
        chosen(packed_of({"messages": [turn("assistant", "a long enough answer")]}), run)
    packed_chat = packed_of({"messages": [turn("user", "hi"), turn("assistant", "ho")]}, keep_source=False)
    with pytest.raises(TrainerError, match="packed chats cannot be used, give the JSONL file"):
        chosen(packed_chat, run)
    with pytest.raises(TrainerError, match=r"prompt_tokens=4 and max_tokens=10 do not fit the 13 tokens"):
        chosen(packed_chat, run, limit=13)


def test_the_greedy_share_is_that_of_the_chosen_prompts(packed_of: Any, make_run: Any) -> None:
    data = packed_of(*({"text": f"document {i}"} for i in range(200)))
    overrides = {"teacher.generate.prompts": 40, "teacher.generate.prompt_tokens": 12}

    def greedy(share: float) -> list[bool]:
        recipe = make_run(overrides=overrides | {"teacher.generate.greedy_share": share}).recipe
        prompts = choose_prompts(data, "train", recipe, make_run().tokenizer, 200).prompts
        return [prompt.greedy for prompt in prompts]

    assert greedy(0.0) == [False] * 40
    assert greedy(1.0) == [True] * 40
    assert 10 <= sum(greedy(0.5)) <= 30
    # Of a larger share the smaller one is a part.
    assert all(more or not less for less, more in zip(greedy(0.3), greedy(0.6), strict=True))
