"""What is too large for one call is sent as several; and the client for threads where a loop runs, as in a notebook."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client import streams
from latentforge.teacher_client.base_client import BaseClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.retries import Tries
from latentforge.teacher_client.scored import Scored
from latentforge.teacher_client.streams import BatchScoring, batch_parts
from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.teacher_client.wire import MAX_MESSAGE_BYTES, MAX_SEQUENCES
from tests.scripted_gateway import BUSY, GONE, Both, Scripted, ask, realised, scripted, status

__all__ = ["ask", "scripted"]


def sizes(parts: list[range]) -> list[int]:
    """Their lengths, where they are all indices in order."""
    assert [i for part in parts for i in part] == list(range(sum(map(len, parts))))
    return [len(part) for part in parts]


def test_parts_hold_as_many_sequences_as_one_call_may() -> None:
    assert sizes(list(batch_parts([[1, 2]] * 40_000))) == [MAX_SEQUENCES, MAX_SEQUENCES, 40_000 - 2 * MAX_SEQUENCES]
    assert sizes(list(batch_parts([[1, 2]] * MAX_SEQUENCES))) == [MAX_SEQUENCES]
    assert list(batch_parts([])) == [range(0)]


@pytest.mark.parametrize("per_row", [0, 64])
def test_parts_fit_a_message_whatever_the_ids_are(per_row: int) -> None:
    # 10 million ids of five bytes each.
    length, number = (20_000, 500) if not per_row else (1_000, 150)
    sequences = [[2**32 - 1] * length] * number
    candidates = [np.full((length - 1, per_row), 2**32 - 1)] * number if per_row else None
    parts = list(batch_parts(sequences, candidates))
    assert len(parts) > 2
    *whole, last = sizes(parts)
    assert sum(whole) + last == number
    assert len(set(whole)) == 1
    for part in (parts[0], parts[-1]):
        request = BatchScoring("f", sequences, 2, "float16", "arrays", "", candidates, part).request()
        assert len(request.sequences) == len(part)
        assert request.ByteSize() < MAX_MESSAGE_BYTES / 2


def test_a_sequence_that_is_too_large_alone_is_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PART_BYTES", 200)
    assert sizes(list(batch_parts([[1] * 2, [1] * 2, [1] * 90, [1] * 2]))) == [2, 1, 1]


def test_a_batch_in_parts_is_answered_as_one_with_its_provenance(
    ask: Both, scripted: tuple[Scripted, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_SEQUENCES", 3)
    refusal = status(grpc.StatusCode.INVALID_ARGUMENT, "no such id")
    # The second part breaks off after its first answer, and one of its sequences is refused for good.
    scripted[0].script = [None, [None, ("end", GONE)], [refusal, None]]
    answers: list[Scored] = ask("score_batch", [[i, 0] for i in range(10, 18)], 2)
    assert sorted(a.index for a in answers) == list(range(8))
    assert realised(answers) == {i: -(10.0 + i) for i in range(8) if i != 4}
    assert [a.index for a in answers if a.error is not None] == [4]
    assert {a.provenance.revision for a in answers if a.error is None} == {"r1"}
    asked = [[s.ids[0] for s in call.sequences] for call in scripted[0].calls]
    assert asked == [[10, 11, 12], [13, 14, 15], [14, 15], [16, 17]]


def test_what_is_wrong_with_an_empty_batch_is_raised(ask: Both, scripted: tuple[Scripted, str]) -> None:
    assert ask("score_batch", [], 2) == []
    scripted[0].script = [[("end", status(grpc.StatusCode.INVALID_ARGUMENT, "top_k is 0"))]]
    with pytest.raises(TeacherError, match="top_k is 0"):
        ask("score_batch", [], 0)
    # It is tried again like any other, and the last failure is not an answer.
    scripted[0].script = [[("end", BUSY)], None, [("end", BUSY)], [("end", GONE)]]
    assert ask("score_batch", [], 2, attempts=2) == []
    with pytest.raises(TeacherError) as caught:
        ask("score_batch", [], 2, attempts=2)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(scripted[0].calls) == 6


def test_another_revision_in_a_later_part_ends_the_call(
    scripted: tuple[Scripted, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_SEQUENCES", 2)
    with SyncTeacherClient(scripted[1]) as client:
        answers = client.score_batch([[i, 0] for i in range(10, 14)], 2, expected_revision="r1")
        assert {next(answers).index, next(answers).index} == {0, 1}
        scripted[0].revision = "r2"
        with pytest.raises(TeacherError, match=r"'r1'.*'r2'"):
            next(answers)


def test_one_timeout_is_for_all_parts(ask: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_SEQUENCES", 1)
    begun: list[Tries] = []
    begin = BaseClient._tries

    def noted(client: Any) -> Tries:
        begun.append(begin(client))
        return begun[-1]

    monkeypatch.setattr(BaseClient, "_tries", noted)
    assert len(ask("score_batch", [[10, 0], [11, 0], [12, 0]], 2)) == 3
    # GetTeacher's, and those of the batch.
    assert len(begun) == 2


def in_a_running_loop(work: Callable[[str], Any], target: str) -> Any:
    """Calls it as a notebook's cell is called: in the thread of a loop that runs, and cannot be waited for there."""

    async def cell() -> Any:
        assert asyncio.get_running_loop().is_running()
        return work(target)

    return asyncio.run(cell())


def test_the_client_for_threads_works_in_a_notebook(scripted: tuple[Scripted, str]) -> None:
    def work(target: str) -> Any:
        with SyncTeacherClient(target, timeout=20) as client:
            one = client.score([10, 0], 2)
            many = realised(list(client.score_batch([[11, 0], [12, 0]], 2)))
            written = [m.text for m in client.generate(pb.GenerateRequest(text="x", max_tokens=2))]
            with ThreadPoolExecutor(2) as pool:
                others = list(pool.map(client.tokenize, ["a", "ab"]))
            return float(one.realised_logprobs[0]), many, written, others

    assert in_a_running_loop(work, scripted[1]) == (-10.0, {0: -11.0, 1: -12.0}, ["a", "b"], [[1], [2]])
