"""Rows from entries as vLLM writes them, against a parser that is slow, obvious and shares no code with ours."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentforge.gateway.backends.rows import WrongRowsError, entries_of, rows_of
from latentforge.teacher_client.sparse_rows import SparseRows

VOCAB = 40


@dataclass(frozen=True)
class E:
    logprob: float
    rank: int | None
    decoded_token: str = "x"


Row = dict[int, E]


def rows(written: list[Any], realised: list[int], top_k: int, first_position: int = 1) -> SparseRows:
    return rows_of(
        entries_of(written, first_position), np.array(realised, np.uint32), first_position, top_k, vocab_size=VOCAB
    )


def as_vllm_writes(distribution: np.ndarray[Any, Any], own: int, top_k: int) -> Row:
    """The own token, then the first ``top_k`` by rank; the own one keeps its place if it is among them."""
    order = np.argsort(-distribution, kind="stable")
    row = {own: E(_number(distribution[own]), int((distribution >= distribution[own]).sum()))}
    for rank, token in enumerate(order[:top_k], 1):
        row[int(token)] = E(_number(distribution[token]), rank)
    return row


def _number(logprob: float) -> float:
    return max(float(np.float32(logprob)), -9999.0)


def slow(row: Row, own: int, top_k: int) -> tuple[list[int], list[float], float, int, float]:
    """ids, logprobs, own logprob, own rank, tail of one row."""
    best = sorted((e.rank or 0, token, e.logprob) for token, e in row.items() if e.rank is not None and e.rank <= top_k)
    real = [(token, logprob) for _, token, logprob in best if logprob > -9999.0]
    tail = 1 - math.fsum(math.exp(logprob) for _, logprob in real)
    own_logprob = row[own].logprob if row[own].logprob > -9999.0 else -math.inf
    return [t for t, _ in real], [p for _, p in real], own_logprob, row[own].rank or 0, min(max(tail, 0.0), 1.0)


def distributions(seed: int, count: int, *, impossible: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, VOCAB)).round(1)  # rounded, so that some are equal
    logits[:, :impossible] = -np.inf
    logprobs: np.ndarray[Any, Any] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logprobs


@given(
    seed=st.integers(0, 1 << 32),
    top_k=st.integers(1, VOCAB),
    count=st.integers(1, 12),
    impossible=st.integers(0, VOCAB - 1),
    data=st.data(),
)
def test_rows_are_what_the_slow_parser_reads(
    seed: int, top_k: int, count: int, impossible: int, data: st.DataObject
) -> None:
    table = distributions(seed, count, impossible=impossible)
    own = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=count, max_size=count))
    written = [as_vllm_writes(p, token, top_k) for p, token in zip(table, own, strict=True)]
    got = rows(written, own, top_k)
    assert got.first_position == 1
    assert got.top_k == top_k
    for r, (row, token) in enumerate(zip(written, own, strict=True)):
        ids, logprobs, own_logprob, own_rank, tail = slow(row, token, top_k)
        assert got.counts[r] == len(ids)
        assert got.ids[r, : len(ids)].tolist() == ids
        assert got.logprobs[r, : len(ids)].tolist() == np.array(logprobs, np.float32).tolist()
        assert got.realised_logprobs[r] == np.float32(own_logprob)
        assert got.realised_ranks[r] == own_rank
        assert got.tail_mass[r] == pytest.approx(tail, abs=1e-6)


def test_an_own_token_beyond_k_is_apart_from_the_row() -> None:
    got = rows([{7: E(-5.0, 12), 1: E(-0.5, 1), 2: E(-1.5, 2)}], [7], 2)
    assert got.ids.tolist() == [[1, 2]]
    assert got.realised_ranks.tolist() == [12]
    assert got.realised_logprobs.tolist() == [-5.0]
    assert got.tail_mass[0] == pytest.approx(1 - math.exp(-0.5) - math.exp(-1.5))


def test_an_own_token_within_k_comes_first_and_is_put_in_its_place() -> None:
    got = rows([{7: E(-1.5, 2), 1: E(-0.5, 1), 2: E(-3.0, 3)}], [7], 3)
    assert got.ids.tolist() == [[1, 7, 2]]
    assert got.realised_ranks.tolist() == [2]


def test_impossible_tokens_are_no_entries() -> None:
    got = rows([{0: E(0.0, 1), 3: E(-9999.0, 2), 4: E(-9999.0, 3)}], [3], 3)
    assert got.counts.tolist() == [1]
    assert got.realised_logprobs.tolist() == [-math.inf]
    assert got.tail_mass.tolist() == [0.0]


def test_ids_between_the_tokenizer_and_the_padded_vocabulary_are_ids() -> None:
    got = rows([{VOCAB - 1: E(-0.5, 1), 0: E(-2.0, 2)}], [0], 2)
    assert got.ids.tolist() == [[VOCAB - 1, 0]]


GOOD: Row = {7: E(-5.0, 12), 1: E(-0.5, 1), 2: E(-1.5, 2)}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "position 6 is null"),
        ({7: E(-5.0, None), 1: E(-0.5, 1), 2: E(-1.5, 2)}, "no rank"),
        ({7: E(-5.0, 12), 1: E(-0.5, 1)}, "position 6 has 0 entries of rank 2"),
        ({7: E(-5.0, 12), 1: E(-0.5, 1), 2: E(-1.5, 1)}, "position 6 has 2 entries of rank 1"),
        ({1: E(-0.5, 1), 2: E(-1.5, 2)}, "position 6 has 0 entries for the token that is there, 7"),
        ({}, "position 6 has 0 entries for the token"),
        ({7: E(-5.0, 12), 1: E(-0.5, 1), VOCAB: E(-1.5, 2)}, f"position 6 has id {VOCAB}; ids are 0 to {VOCAB - 1}"),
        ({7: E(-5.0, 12), 1: E(-0.5, 1), -1: E(-1.5, 2)}, "position 6 has id -1"),
        ({7: E(-5.0, 12), 1: E(-1.5, 1), 2: E(-0.5, 2)}, "position 6 is not sorted"),
        ({7: E(-5.0, 12), 1: E(-0.1, 1), 2: E(-0.1, 2)}, "sum to 1.8097"),
        ({7: E(-5.0, 12), 1: E(math.nan, 1), 2: E(-1.5, 2)}, "position 6 is not sorted"),
        ({7: E(math.nan, 1), 1: E(math.nan, 2)}, "position 6"),
    ],
)
def test_an_impossible_row_is_refused_with_its_position(row: Row | None, why: str) -> None:
    with pytest.raises(WrongRowsError, match=why):
        rows([GOOD, row, GOOD], [7, 7, 7], 2, first_position=5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_rows_are_refused(count: int) -> None:
    with pytest.raises(WrongRowsError, match=f"there are {count} rows, and 2 positions to score"):
        rows([GOOD] * count, [7, 7], 2)
