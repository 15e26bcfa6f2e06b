import json
from pathlib import Path

import pytest

from latentforge.text.errors import TextError
from latentforge.text.held_out import split_held_out


def test_held_out_documents_are_chosen_by_content_alone(tmp_path: Path) -> None:
    texts = [f"document number {i} " * 5 for i in range(200)]
    sides = []
    for name, order in (("a", texts), ("b", [*reversed(texts), texts[3]])):
        source, train, held_out = (tmp_path / f"{name}-{part}.jsonl" for part in ("source", "train", "held"))
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in order))
        num_train, num_held_out = split_held_out(source, train, held_out, min_characters=100)
        assert num_train + num_held_out == len(order)
        sides.append({json.loads(line)["text"] for line in held_out.read_text().splitlines()})
        assert not sides[-1] & {json.loads(line)["text"] for line in train.read_text().splitlines()}
    assert sides[0] == sides[1]
    assert 2 <= len(sides[0]) <= 25


def test_too_small_a_file_is_not_divided(tmp_path: Path) -> None:
    source = tmp_path / "one.jsonl"
    source.write_text('{"text": "only one"}\n')
    with pytest.raises(TextError, match="too small to hold documents out"):
        split_held_out(source, tmp_path / "t", tmp_path / "h", min_characters=4)
    assert not (tmp_path / "t").exists()
