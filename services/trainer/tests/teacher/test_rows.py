import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch

from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.batches import training_batch, training_sequences
from latentforge.trainer.teacher.connection import TeacherLink, TeacherLostError
from latentforge.trainer.teacher.rows import TeacherRows, kd_targets

VOCAB = 260


@contextmanager
def rows_of(teacher: Any) -> Iterator[TeacherRows]:
    with TeacherLink(f"127.0.0.1:{teacher.port}", patience=5.0) as link:
        yield TeacherRows(link, 4, dtype="float32")


def test_rows_lie_over_their_tokens_also_when_shifted(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.phase_probability": 0.8})
    steps = range(6)
    shifts = set()
    with rows_of(known_teacher) as teacher:
        asked = [teacher.ask(training_sequences(run, packed, step)) for step in steps]
        for step, rows in zip(steps, map(teacher.take, asked), strict=True):
            batch = training_batch(run, packed, step, rows)
            assert batch.kd is not None
            pads = (~batch.valid).sum(1)
            shifts |= set(pads.tolist())
            # The first real token of a sequence has no row, everything after it has.
            assert torch.equal(batch.kd.has_row.sum(1), 31 - pads)
            assert known_teacher.divergence(batch).abs().max() < 1e-5
            assert known_teacher.divergence(batch, move=1).mean() > 0.1
            assert known_teacher.divergence(batch, move=-1).mean() > 0.1
    assert len(shifts) > 2


def test_the_teacher_is_asked_about_unshifted_sequences(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    run = make_run(overrides={"student.phase_probability": 1.0})
    sequences = training_sequences(run, packed, 0)
    with rows_of(known_teacher) as teacher:
        teacher.take(teacher.ask(sequences))
    assert known_teacher.requests == [[s.tolist() for s in sequences]]


def test_rows_beyond_the_sequence_are_refused(known_teacher: Any) -> None:
    rows = known_teacher.rows([5, 6, 7, 8], 4)
    with pytest.raises(ValueError, match=r"rows for tokens 1..3 of a sequence of 3"):
        kd_targets([rows], 3, [0])


def test_hits_are_counted_from_provenance(known_teacher: Any, packed: PackedData) -> None:
    batch = [torch.from_numpy(packed.sequence(0)), torch.from_numpy(packed.sequence(1))]
    with rows_of(known_teacher) as teacher:
        for _ in range(2):
            teacher.take(teacher.ask(batch))
        assert (teacher.cache.sequences, teacher.cache.hits) == (4, 2)
        assert (teacher.cache.rows, teacher.cache.rows_from_cache) == (4 * 31, 2 * 31)


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


def test_a_refusal_reaches_the_loop_at_once(known_teacher: Any, packed: PackedData) -> None:
    known_teacher.fail_with = grpc.StatusCode.INVALID_ARGUMENT
    with rows_of(known_teacher) as teacher:
        asked = teacher.ask([torch.from_numpy(packed.sequence(0))])
        with pytest.raises(TrainerError, match="refused: INVALID_ARGUMENT"):
            teacher.take(asked)


def test_a_lost_gateway_is_tried_again_and_said(
    known_teacher: Any, packed: PackedData, caplog: pytest.LogCaptureFixture
) -> None:
    known_teacher.fail_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    timer = threading.Timer(0.3, lambda: setattr(known_teacher, "fail_with", None))
    with caplog.at_level(logging.WARNING), rows_of(known_teacher) as teacher:
        timer.start()
        rows = teacher.take(teacher.ask([torch.from_numpy(packed.sequence(0))]))
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


def test_a_stop_request_ends_the_waiting(packed: PackedData) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with TeacherLink("127.0.0.1:9", patience=60, stop=stop.is_set) as link:
        teacher = TeacherRows(link, 4)
        asked = teacher.ask([torch.from_numpy(packed.sequence(0))])
        with pytest.raises(Interrupted):
            teacher.take(asked)
