import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.teacher.continuations import Continuation, Dropped, GeneratedStore


def continuation(known_rows: Any, seed: int, *, k: int = 4) -> Continuation:
    random = np.random.default_rng(seed)
    ids = random.integers(4, 260, 5 + seed % 3).tolist()
    rows = known_rows.rows(known_rows, ids, k)
    prompt = len(ids) - 3
    arrays = {name: value[prompt - 1 :] for name, value in vars(rows).items() if isinstance(value, np.ndarray)}
    whole = np.array(ids, dtype=np.uint32)
    return Continuation(whole[:prompt], whole[prompt:], SparseRows(first_position=prompt, **arrays), bool(seed % 2))


def answers(known_rows: Any, prompt: int) -> list[Continuation | Dropped]:
    if prompt == 1:
        return [Dropped("odd"), continuation(known_rows, 7)]
    return [continuation(known_rows, 2 * prompt), continuation(known_rows, 2 * prompt + 1)]


def write(folder: Path, known_rows: Any, prompts: Any, **options: Any) -> str:
    with GeneratedStore(folder, "float32", **options) as store:
        for prompt in prompts:
            if prompt not in store:
                store.append(prompt, answers(known_rows, prompt))
        return store.digest(range(4))


def same(a: Continuation, b: Continuation) -> bool:
    arrays = [(a.prompt_ids, b.prompt_ids), (a.token_ids, b.token_ids)]
    arrays += [(x, y) for x, y in zip(vars(a.rows).values(), vars(b.rows).values(), strict=True) if x is not None]
    return a.stopped == b.stopped and all(np.array_equal(x, y) for x, y in arrays)


@pytest.mark.parametrize("shard_bytes", [1, 2**20])
def test_what_was_appended_comes_back_in_the_prompts_order(tmp_path: Path, known_rows: Any, shard_bytes: int) -> None:
    write(tmp_path, known_rows, [2, 0, 1], shard_bytes=shard_bytes)
    with GeneratedStore(tmp_path, "float32") as store:
        assert [p in store for p in range(4)] == [True, True, True, False]
        expected = [a for p in range(3) for a in answers(known_rows, p) if isinstance(a, Continuation)]
        found = [store.read(r) for r in store.records(range(4))]
        assert [same(f, e) for f, e in zip(found, expected, strict=True)] == [True] * 5
        assert store.dropped() == ["odd"]
        assert (store.num_usable(), store.num_tokens()) == (5, 15)
    assert len(list(tmp_path.glob("shard-*"))) == (5 if shard_bytes == 1 else 1)


def test_the_digest_is_of_the_content_not_of_the_order_of_arrival(tmp_path: Path, known_rows: Any) -> None:
    one = write(tmp_path / "a", known_rows, [0, 1, 2, 3])
    assert write(tmp_path / "b", known_rows, [3, 1, 0, 2]) == one
    assert write(tmp_path / "c", known_rows, [3, 1, 0]) != one


@pytest.mark.parametrize("torn", ["index.jsonl", "shard-00000.bin"])
def test_a_kill_at_any_byte_leaves_whole_prompts_and_the_rest_is_asked_again(
    tmp_path: Path, known_rows: Any, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole"
    digest = write(whole, known_rows, range(4))
    size = (whole / torn).stat().st_size
    left = set()
    for kept in [*range(0, size, 11), size - 1]:
        folder = tmp_path / f"cut-{kept}"
        shutil.copytree(whole, folder)
        with (folder / torn).open("r+b") as file:
            file.truncate(kept)
        with GeneratedStore(folder, "float32") as store:
            left.add(sum(p in store for p in range(4)))
        assert write(folder, known_rows, range(4)) == digest, kept
        # What was torn is not read again by the next one either.
        assert write(folder, known_rows, ()) == digest, kept
        shutil.rmtree(folder)
    assert left == {0, 1, 2, 3}


def test_a_flipped_bit_costs_one_prompt(tmp_path: Path, known_rows: Any, caplog: pytest.LogCaptureFixture) -> None:
    digest = write(tmp_path, known_rows, range(4))
    data = bytearray((tmp_path / "shard-00000.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "shard-00000.bin").write_bytes(data)
    with GeneratedStore(tmp_path, "float32") as store:
        assert sum(p in store for p in range(4)) == 3
    assert "asked for again" in caplog.text
    assert write(tmp_path, known_rows, range(4)) == digest
