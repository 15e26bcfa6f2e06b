from typing import Any

import grpc
import pytest
import torch

from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.targets.batches import training_sequences
from latentforge.trainer.teacher.rows import TeacherRows


def test_the_teacher_is_asked_about_unshifted_sequences(
    known_teacher: Any, teacher_rows: TeacherRows, make_run: Any, packed: PackedData
) -> None:
    run = make_run(overrides={"student.phase_probability": 1.0})
    sequences = training_sequences(run, packed, 0)
    teacher_rows.take(teacher_rows.ask(sequences))
    assert known_teacher.requests == [[s.tolist() for s in sequences]]


def test_hits_are_counted_from_provenance(teacher_rows: TeacherRows, packed: PackedData) -> None:
    batch = [torch.from_numpy(packed.sequence(0)), torch.from_numpy(packed.sequence(1))]
    for _ in range(2):
        teacher_rows.take(teacher_rows.ask(batch))
    assert (teacher_rows.cache.sequences, teacher_rows.cache.hits) == (4, 2)
    assert (teacher_rows.cache.rows, teacher_rows.cache.rows_from_cache) == (4 * 31, 2 * 31)


def test_a_refusal_reaches_the_loop_at_once(known_teacher: Any, teacher_rows: TeacherRows, packed: PackedData) -> None:
    known_teacher.fail_with = grpc.StatusCode.INVALID_ARGUMENT
    asked = teacher_rows.ask([torch.from_numpy(packed.sequence(0))])
    with pytest.raises(TrainerError, match="refused: INVALID_ARGUMENT"):
        teacher_rows.take(asked)
