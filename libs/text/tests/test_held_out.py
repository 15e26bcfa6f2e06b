import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentforge.text import held_out
from latentforge.text.documents import Document
from latentforge.text.errors import TextError
from latentforge.text.held_out import HELD_OUT_BELOW, SplitSource, content_hash, held_out_below
from latentforge.text.text_source import TextSource


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"d:{i}", text, None) for i, text in enumerate(texts)]


def sides_of_old(texts: list[Document], min_characters: int) -> set[int] | None:
    """The rule with everything in memory: the hashes that are held out, or None where it refuses."""
    by_hash = sorted({(content_hash(d), len(d.content)) for d in texts})
    chosen: set[int] = set()
    characters = 0
    for place, size in by_hash:
        if place >= HELD_OUT_BELOW and characters >= min_characters:
            break
        chosen.add(place)
        characters += size
    return None if 2 * len(chosen) > len(by_hash) or characters < min_characters else chosen


@pytest.mark.parametrize("seed", range(60))
def test_every_document_is_on_the_side_that_the_whole_file_in_memory_gave_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.choice([1, 2, 3, 5, 20, 60, 300, 1000]))
    texts = [f"{seed} {random.integers(count)} " + "x" * int(random.exponential(40)) for _ in range(count)]
    texts += [texts[0], "", ""]
    wanted = int(random.choice([0, 1, 50, 400, 3000, 100_000]))
    expected = sides_of_old(documents(texts), wanted)
    if expected is None:
        with pytest.raises(TextError, match="too small to hold documents out"):
            held_out_below(documents(texts), wanted)
    else:
        below = held_out_below(documents(texts), wanted)
        assert {h for h in map(content_hash, documents(texts)) if h < below} == expected


def test_reading_ends_when_five_percent_are_known_to_be_enough() -> None:
    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document(f"d:{read}", f"document number {read}", None)

    assert held_out_below(endless(), 1000) == HELD_OUT_BELOW
    assert read < 5000


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "_MOST_REMEMBERED", 400)
    # So short that 5 % of them are never enough: all are looked at.
    some = [str(i) for i in range(2000)]
    expected = sides_of_old(documents(some), 500)
    below = held_out_below(documents(some), 500)
    assert expected is not None
    assert {h for h in map(content_hash, documents(some)) if h < below} == expected


def test_a_source_is_read_by_sides_and_no_file_is_written(tmp_path: Path) -> None:
    texts = [f"document number {i} " * 5 for i in range(200)]
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*reversed(texts), texts[3]]))
    source = TextSource.of(path)
    below = held_out_below(source.documents(), 100)
    train, held = ([d.text for d in SplitSource(source, split, below).documents()] for split in ("train", "held-out"))
    assert sorted([*train, *held]) == sorted([*texts, texts[3]])  # type: ignore[type-var]
    assert not set(train) & set(held)
    assert 2 <= len(held) <= 25
    assert [p.name for p in tmp_path.iterdir()] == ["source.jsonl"]
