from typing import Any

import pytest

from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.targets import scored
from latentforge.trainer.targets.batches import training_sequences
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.teacher.connection import TeacherLink


def test_rows_are_asked_for_at_once_and_no_more_than_so_many_batches_ahead(
    known_teacher: Any, make_run: Any, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spied(run: Any, data: PackedData, step: int) -> Any:
        asked.append(step)
        return training_sequences(run, data, step)

    monkeypatch.setattr(scored, "training_sequences", spied)
    run = make_run(port=known_teacher.port, ahead=3)
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, link, *split_tail(packed))
        model: Any = None
        batches = source.training_batches(2, model, with_rows=True)
        assert asked == [2, 3, 4]
        next(batches)
        assert asked == [2, 3, 4, 5]
        # To the last step and not beyond.
        assert len(list(batches)) == 9
    assert asked == list(range(2, 12))


def test_every_batch_has_the_rows_of_its_own_step(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    run = make_run(port=known_teacher.port)
    train, held_out = split_tail(packed)
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, link, train, held_out)
        model: Any = None
        batches = [*source.training_batches(0, model, with_rows=True), *source.held_out_batches()]
    assert len(batches) == 12 + 2
    assert max(float(known_teacher.divergence(batch).abs().max()) for batch in batches) < 1e-5
