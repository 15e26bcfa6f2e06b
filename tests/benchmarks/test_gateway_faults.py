from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gateway.faults import CallUnderFault, FaultCount, FaultsPlan, counted, measure_faults, same_rows
from benchmarks.gateway.servers import Servers
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.teacher_client.wire import rows_to_proto

_IDS = (5, 6, 7)


def _rows(seed: int = 0) -> SparseRows:
    """Two rows of three entries."""
    random = np.random.default_rng(seed)
    logprobs = -np.sort(random.uniform(1, 9, (2, 3)), axis=1)
    return SparseRows(
        first_position=1,
        ids=random.permuted(np.tile(np.arange(3), (2, 1)), axis=1).astype(np.uint32),
        logprobs=logprobs.astype(np.float32),
        counts=np.full(2, 3, np.uint16),
        realised_logprobs=logprobs[:, 1].astype(np.float32),
        realised_ranks=np.full(2, 2, np.uint32),
        tail_mass=np.full(2, 0.1, np.float32),
    )


def _answer(phase: int, rows: SparseRows, *, cache_hit: bool) -> CallUnderFault:
    response = pb.ScoreResponse(rows=rows_to_proto(rows, "float16"), provenance=pb.Provenance(cache_hit=cache_hit))
    return CallUnderFault(phase, _IDS, response)


def test_calls_that_fail_and_calls_with_other_rows_are_counted_apart() -> None:
    answers = [
        _answer(0, _rows(), cache_hit=False),
        _answer(1, _rows(1), cache_hit=True),
        CallUnderFault(1, _IDS, None, "INTERNAL: oh"),
        _answer(2, _rows(), cache_hit=True),
    ]
    assert counted(answers, {_IDS: _rows()}) == FaultCount(
        calls=4, failed=1, wrong=1, hits=[0, 1, 1], asked=[1, 2, 1], errors=Counter({"INTERNAL: oh": 1})
    )


def test_rows_are_the_same_where_rounding_alone_tells_them_apart() -> None:
    rows = _rows()
    least = rows.logprobs.copy()
    least[0] = [-2.0, -5.0, -5.01]
    rows = replace(rows, ids=np.array([[1, 2, 3], [1, 2, 3]], np.uint32), logprobs=least)
    assert same_rows(rows, replace(rows, logprobs=rows.logprobs + np.float32(0.004)))
    for swapped in ([1, 3, 2], [1, 2, 9]):
        ids = rows.ids.copy()
        ids[0] = swapped
        assert same_rows(rows, replace(rows, ids=ids))
    for swapped in ([2, 1, 3], [9, 2, 3]):
        ids = rows.ids.copy()
        ids[0] = swapped
        assert not same_rows(rows, replace(rows, ids=ids))
    assert not same_rows(rows, replace(rows, realised_logprobs=rows.realised_logprobs + np.float32(0.1)))
    assert not same_rows(rows, replace(rows, first_position=2))
    assert not same_rows(rows, rows.narrowed(2))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_store_that_breaks_under_load_fails_no_call(tmp_path: Path) -> None:
    told = []
    with ExitStack() as stack:
        servers = Servers(stack, tmp_path / "logs", tmp_path)
        found = measure_faults(
            FaultsPlan(2, 20, 0.0, 0.0),
            ["redis_killed", "sqlite_corrupt"],
            servers,
            Path("models/stdlib-teacher"),
            lambda what, figure: told.append(what),
        )
    assert told == list(found) == ["redis_killed", "sqlite_corrupt"]
    for count in found.values():
        assert (count.failed, count.wrong, count.errors) == (0, 0, {})
        assert count.calls == sum(count.asked) >= 60
        # The store was asked, and had what it was given.
        assert count.hits[0] > 0
    assert any(found["sqlite_corrupt"].store.values())
