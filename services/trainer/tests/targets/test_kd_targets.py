from typing import Any

import pytest
import torch

from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.targets.batches import training_batch, training_sequences
from latentforge.trainer.targets.kd_targets import kd_targets
from latentforge.trainer.teacher.rows import TeacherRows


def test_rows_lie_over_their_tokens_also_when_shifted(
    known_teacher: Any, teacher_rows: TeacherRows, make_run: Any, packed: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.phase_probability": 0.8})
    steps = range(6)
    shifts = set()
    asked = [teacher_rows.ask(training_sequences(run, packed, step)) for step in steps]
    for step, answers in zip(steps, map(teacher_rows.take, asked), strict=True):
        rows = [answer for answer in answers if isinstance(answer, SparseRows)]
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


def test_rows_beyond_the_sequence_are_refused(known_teacher: Any) -> None:
    rows = known_teacher.rows([5, 6, 7, 8], 4)
    with pytest.raises(ValueError, match=r"rows for tokens 1..3 of a sequence of 3"):
        kd_targets([rows], 3, [0])
