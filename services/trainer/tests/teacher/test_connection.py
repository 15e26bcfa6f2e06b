import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.teacher.connection import TeacherLink, TeacherLostError
from latentforge.trainer.teacher.rows import TeacherRows

VOCAB = 260


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, r"fingerprint other, the data was packed with mine"),
        ({"max_top_k": 3}, r"at most 3 entries a row; teacher\.top_k=4"),
        ({"vocab_size": 999}, r"output layer of 999 ids, the models have 260; set the recipe's vocab_size to 999"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(known_teacher: Any, change: dict[str, Any], message: str) -> None:
    known_teacher.fingerprint = "mine"
    for name, value in change.items():
        setattr(known_teacher, name, value)
    with TeacherLink(f"127.0.0.1:{known_teacher.port}") as link, pytest.raises(TrainerError, match=message):
        link.teacher("mine", VOCAB, 4)


def test_the_gateway_says_how_much_it_saved(known_teacher: Any) -> None:
    with TeacherLink(f"127.0.0.1:{known_teacher.port}") as link:
        assert link.cache_stats().saved_seconds == 1.5


def test_a_lost_gateway_is_tried_again_and_said(
    known_teacher: Any, teacher_rows: TeacherRows, packed: PackedData, caplog: pytest.LogCaptureFixture
) -> None:
    known_teacher.fail_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    timer = threading.Timer(0.3, lambda: setattr(known_teacher, "fail_with", None))
    with caplog.at_level(logging.WARNING):
        timer.start()
        rows = teacher_rows.take(teacher_rows.ask([torch.from_numpy(packed.sequence(0))]))
    assert isinstance(rows[0], SparseRows)
    assert len(rows[0]) == 31
    said = [r.getMessage() for r in caplog.records if "teacher" in r.getMessage()]
    assert "lost" in said[0]
    assert "back" in said[1]


def test_patience_ends(packed: PackedData) -> None:
    with TeacherLink("127.0.0.1:9", patience=0.1) as link:
        teacher = TeacherRows(link, 4)
        asked = teacher.ask([torch.from_numpy(packed.sequence(0))])
        with pytest.raises(TeacherLostError, match=r"stayed away .* no teacher-gateway answers at 127\.0\.0\.1:9"):
            teacher.take(asked)


def test_what_is_waited_for_is_said_until_it_is_back(
    known_teacher: Any, packed: PackedData, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.trainer.teacher.connection._SECONDS_BETWEEN_LINES", 0.1)
    lines: list[str | None] = []
    known_teacher.fail_with = grpc.StatusCode.UNAVAILABLE
    threading.Timer(1.0, lambda: setattr(known_teacher, "fail_with", None)).start()
    target = f"127.0.0.1:{known_teacher.port}"
    with TeacherLink(target, patience=30.0) as link, caplog.at_level(logging.WARNING):
        link.on_lost = lines.append
        rows = TeacherRows(link, 4)
        rows.take(rows.ask([torch.from_numpy(packed.sequence(0))]))
    assert lines[0] == f"waiting for the teacher at {target} for 0 s, at most 30 s"
    assert lines[-1] is None
    waiting = [
        r.getMessage() for r in caplog.records if r.getMessage().startswith(f"waiting for the teacher at {target}")
    ]
    assert waiting
    assert "at most 30 s: UNAVAILABLE" in waiting[0]


def test_a_pause_beyond_the_patience_is_cut_to_it_and_followed_by_a_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    busy = TeacherError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after=400.0)
    calls = 0
    sleep, here = asyncio.sleep, threading.get_ident()

    async def slept(seconds: float) -> None:
        if threading.get_ident() == here:
            naps.append(seconds)
        else:
            await sleep(seconds)

    async def call() -> int:
        nonlocal calls
        calls += 1
        if calls < answered_at:
            raise busy
        return calls

    # Not the process's own clock: event loops that other tests' servers run would sleep for hours.
    clock = SimpleNamespace(monotonic=lambda: 100.0 + sum(naps))
    monkeypatch.setattr("latentforge.trainer.teacher.connection.time", clock)
    link, answered_at = TeacherLink("127.0.0.1:9", patience=300.0), 2
    monkeypatch.setattr("asyncio.sleep", slept)
    assert asyncio.run(link.retried(call)) == 2
    assert naps == [300.0]
    calls, answered_at = 0, 100
    with pytest.raises(TeacherLostError, match="stayed away for 300 s: busy"):
        asyncio.run(link.retried(call))
    assert (calls, naps) == (2, [300.0, 300.0])


def test_a_stop_request_ends_the_waiting(packed: PackedData) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with TeacherLink("127.0.0.1:9", patience=60, stop=stop.is_set) as link:
        teacher = TeacherRows(link, 4)
        asked = teacher.ask([torch.from_numpy(packed.sequence(0))])
        with pytest.raises(Interrupted):
            teacher.take(asked)


def test_the_link_knows_how_long_the_teacher_was_waited_for(known_teacher: Any) -> None:
    with TeacherLink(f"127.0.0.1:{known_teacher.port}") as link:
        assert link.waiting.waited == 0
        link.wait(link.submit(asyncio.sleep(0.05)))
        assert link.waiting.waited > 0
