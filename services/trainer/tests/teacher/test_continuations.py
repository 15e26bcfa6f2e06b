import pickle
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.errors import TrainerError
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


def write(folder: Path, known_rows: Any, prompts: Any) -> str:
    with closing(GeneratedStore(folder, "float32")) as store:
        for prompt in prompts:
            if prompt not in store:
                store.append(prompt, answers(known_rows, prompt))
        return store.digest(range(4))


def same(a: Continuation, b: Continuation) -> bool:
    arrays = [(a.prompt_ids, b.prompt_ids), (a.token_ids, b.token_ids)]
    arrays += [(x, y) for x, y in zip(vars(a.rows).values(), vars(b.rows).values(), strict=True) if x is not None]
    return a.stopped == b.stopped and all(np.array_equal(x, y) for x, y in arrays)


def test_what_was_appended_comes_back_in_the_prompts_order(tmp_path: Path, known_rows: Any) -> None:
    write(tmp_path, known_rows, [2, 0, 1])
    with closing(GeneratedStore(tmp_path, "float32")) as store:
        assert [p in store for p in range(4)] == [True, True, True, False]
        expected = [a for p in range(3) for a in answers(known_rows, p) if isinstance(a, Continuation)]
        found = [store.read(r) for r in store.records(range(4))]
        assert [same(f, e) for f, e in zip(found, expected, strict=True)] == [True] * 5
        assert [r.prompt for r in store.records([2, 1])] == [2, 2, 1]
        assert store.dropped() == ["odd"]
        assert (store.num_usable, store.num_dropped, store.num_tokens()) == (5, 1, 15)


def test_counts_are_of_what_is_there_and_cost_no_look_at_it(tmp_path: Path, known_rows: Any) -> None:
    for prompts, already in ((range(2), (0, 0)), (range(2, 4), (3, 1))):
        with closing(GeneratedStore(tmp_path, "float32")) as store:
            assert (store.num_usable, store.num_dropped) == already
            for prompt in prompts:
                store.append(prompt, answers(known_rows, prompt))
                with pytest.raises(TrainerError, match="UNIQUE"):
                    store.append(prompt, answers(known_rows, prompt))
            looks: list[str] = []
            store._database.set_trace_callback(looks.append)
            assert (store.num_usable, store.num_dropped) == (2 * prompts.stop - 1, 1)
            assert looks == []


def test_the_digest_is_of_the_content_not_of_the_order_of_arrival(tmp_path: Path, known_rows: Any) -> None:
    one = write(tmp_path / "a", known_rows, [0, 1, 2, 3])
    assert write(tmp_path / "b", known_rows, [3, 1, 0, 2]) == one
    assert write(tmp_path / "c", known_rows, [3, 1, 0]) != one


def test_a_prompt_is_kept_whole_or_not_at_all(tmp_path: Path, known_rows: Any) -> None:
    def odd() -> Any:
        yield continuation(known_rows, 1)
        raise KeyboardInterrupt

    write(tmp_path, known_rows, [0])
    with closing(GeneratedStore(tmp_path, "float32")) as store:
        with pytest.raises(KeyboardInterrupt):
            store.append(1, odd())
        # The second of these is no continuation.
        with pytest.raises(AttributeError):
            store.append(2, [continuation(known_rows, 2), object()])  # type: ignore[list-item]
        assert [p in store for p in range(3)] == [True, False, False]
    assert write(tmp_path, known_rows, range(4)) == write(tmp_path / "other", known_rows, range(4))


# Appends what it lacks and says so, until the time has come.
APPENDS = """
import os, pickle, signal, sqlite3, sys
from contextlib import closing
from pathlib import Path
from latentforge.trainer.teacher.continuations import GeneratedStore

left, connect = int(sys.argv[3]), sqlite3.connect

def count(statement):
    global left
    left -= statement.split()[0].lower() in ("begin", "insert", "commit")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(path):
    database = connect(path)
    database.set_trace_callback(count)
    return database

sqlite3.connect = watched
with closing(GeneratedStore(Path(sys.argv[1]), "float32")) as store:
    for prompt, answers in pickle.loads(Path(sys.argv[2]).read_bytes()).items():
        if prompt not in store:
            store.append(prompt, answers)
            print(prompt, flush=True)
"""


@pytest.mark.parametrize("statement", range(4, 12))
def test_a_kill_at_any_statement_leaves_whole_prompts_and_the_rest_is_asked_again(
    tmp_path: Path, known_rows: Any, statement: int
) -> None:
    everything = {prompt: answers(known_rows, prompt) for prompt in (2, 0, 1)}
    (tmp_path / "answers").write_bytes(pickle.dumps(everything))
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", APPENDS, str(folder), str(tmp_path / "answers"), str(statement)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    kept = list(map(int, killed.stdout.split()))
    with closing(GeneratedStore(folder, "float32")) as store:
        # What append returned from is there, and nothing of the one under way.
        assert [prompt for prompt in everything if prompt in store] == kept
        assert store.num_usable + store.num_dropped == 2 * len(kept)
    assert len(kept) == (statement - 3) // 4
    # What is missing is asked for again, and then it is as if nobody had died.
    assert write(folder, known_rows, range(4)) == write(tmp_path / "whole", known_rows, range(4))


def test_a_torn_file_is_named_with_what_to_do(tmp_path: Path, known_rows: Any) -> None:
    write(tmp_path, known_rows, range(4))
    path = tmp_path / "continuations.sqlite"
    whole = path.read_bytes()
    for kept in [*range(600, len(whole), 509), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(TrainerError, match=rf"{path} cannot be used \(.*\): restore it, or .*--fresh"):
            GeneratedStore(tmp_path, "float32")
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(TrainerError, match="file is not a database"):
        GeneratedStore(tmp_path, "float32")


def test_rows_of_which_a_bit_flipped_are_not_learnt_from(tmp_path: Path, known_rows: Any) -> None:
    write(tmp_path, known_rows, range(4))
    path = tmp_path / "continuations.sqlite"
    data = bytearray(path.read_bytes())
    data[data.index(b"LFR2") + 40] ^= 1
    path.write_bytes(data)
    with (
        closing(GeneratedStore(tmp_path, "float32")) as store,
        pytest.raises(TrainerError, match=f"{path} cannot be used"),
    ):
        [store.read(record) for record in store.records(range(4))]
