import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_hash import is_chosen, sequence_hash
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets import scored
from latentforge.trainer.targets.batches import step_texts, training_sequences
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.teacher import rows as rows_module
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.rows import TeacherRows
from latentforge.trainer.training.learners import token_level_learner
from latentforge.trainer.training.student import train_student
from latentforge.trainer.training.validation import evaluate_student, teacher_nll


def rows_of(run: Any, link: TeacherLink) -> TeacherRows:
    return TeacherRows(link, run.recipe.teacher.top_k, "float32")


def test_rows_are_asked_for_at_once_and_no_more_than_so_many_batches_ahead(
    known_teacher: Any, make_run: Any, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spied(run: Any, data: PackedData, step: int) -> Any:
        asked.append(step)
        return step_texts(run, data, step)

    monkeypatch.setattr(scored, "step_texts", spied)
    run = make_run(port=known_teacher.port, ahead=3)
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, rows_of(run, link), *split_tail(packed))
        model: Any = None
        batches = source.training_batches(range(2, 12), model, with_rows=True)
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
        source = ScoredTargets(run, rows_of(run, link), train, held_out)
        model: Any = None
        batches = [*source.training_batches(range(12), model, with_rows=True), *source.held_out_batches()]
    assert len(batches) == 12 + 2
    assert max(float(known_teacher.divergence(batch).abs().max()) for batch in batches) < 1e-5


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_SECONDS_BEFORE_LAST_TRY", 0.0)


def poisoned_by(run: Any, data: PackedData, step: int, row: int) -> Any:
    """Says whether a sequence is the one that a step takes in a row."""
    bad = training_sequences(run, data, step)[row].tolist()
    return lambda ids: ids == bad


@pytest.mark.usefixtures("no_pause")
def test_a_poisoned_sequence_is_trained_without_rows_and_the_others_with_theirs(
    known_teacher: Any, make_run: Any, packed: PackedData, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(port=known_teacher.port)
    train, held_out = split_tail(packed)
    known_teacher.poisoned = poisoned_by(run, train, 3, 1)
    with TeacherLink.of(run.settings, run.stop) as link, caplog.at_level(logging.WARNING):
        source = ScoredTargets(run, rows_of(run, link), train, held_out)
        model: Any = None
        batches = list(source.training_batches(range(12), model, with_rows=True))
        assert source.figures() == {"without_rows": 1.0}
        assert source.report().failed == 1
    without = [(s, r) for s, b in enumerate(batches) for r in range(2) if not b.kd.has_row[r].any()]  # type: ignore[union-attr]
    assert without == [(3, 1)]
    # All of its tokens are learnt as ever, and every other sequence has rows for all but its first token.
    for batch in batches:
        assert batch.kd is not None
        assert int(batch.valid.sum()) > 50
        has = batch.kd.has_row.any(1)
        assert (batch.kd.has_row.sum(1)[has] == batch.valid.sum(1)[has] - 1).all()
    assert max(float(known_teacher.divergence(b).abs().max()) for b in batches) < 1e-5
    (line,) = [r.getMessage() for r in caplog.records if "has no rows" in r.getMessage()]
    assert f"of {packed.folder} has no rows of the teacher: INTERNAL: the teacher failed: nan" in line
    # It is asked about once more, by itself: it might have been chance.
    bad = training_sequences(run, train, 3)[1].tolist()
    assert sum(bad in request for request in known_teacher.requests) == 2
    assert [bad] in known_teacher.requests


@pytest.mark.usefixtures("no_pause")
def test_too_large_a_share_of_failures_ends_the_run_by_name(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    known_teacher.poisoned = lambda ids: sequence_hash(np.array(ids))[0] < 64
    run = make_run(port=known_teacher.port, overrides={"student.optim.steps": 40})
    with pytest.raises(TrainerError, match=r"fails on \d+ of 20 sequences, more than teacher\.max_failed_share=0\.05"):
        train_student(run, *data, autoencoder)
    generous = make_run("other", port=known_teacher.port, overrides={"teacher.max_failed_share": 0.9})
    result: Any = train_student(generous, *data, autoencoder)
    assert 0 < result.cache.failed < 24
    assert all(np.isfinite(point.kd) for point in result.curve)


@pytest.mark.usefixtures("no_pause")
def test_a_run_with_failures_resumes_bit_for_bit_and_keeps_its_counts(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data, overrides = split_tail(packed), {"teacher.max_failed_share": 0.9}
    known_teacher.poisoned = lambda ids: sequence_hash(np.array(ids))[0] < 64
    results, places = [], []
    for name, stops in (("whole", []), ("cut", [3, 7])):
        for stop in stops:
            run = make_run(name, port=known_teacher.port, overrides=overrides, stop_at=("student", stop))
            with pytest.raises(Interrupted):
                train_student(run, *data, autoencoder)
        run = make_run(name, port=known_teacher.port, overrides=overrides)
        results.append(train_student(run, *data, autoencoder))
        places.append(list_checkpoints(run.settings.checkpoints_dir / name)[-1])
    assert results[0].cache is not None
    assert results[1].cache is not None
    assert results[0].cache.failed == results[1].cache.failed > 0
    ours, theirs = (load_file(place / "student" / "model.safetensors") for place in places)
    assert all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.usefixtures("no_pause")
def test_figures_on_held_out_data_are_of_the_rows_that_there_are(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.validation_sequences": 3})
    train, held_out = split_tail(packed)
    learner = token_level_learner(run, torch.ones(260))
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, rows_of(run, link), train, held_out)
        whole = source.held_out_batches()
        known_teacher.poisoned = lambda ids: ids == whole[1].tokens[0].tolist()
        some = source.held_out_batches()
        figures = evaluate_student(learner.model, some, 0, run.device)
        of_two = evaluate_student(learner.model, [whole[0], whole[2]], 0, run.device)
        of_all = evaluate_student(learner.model, whole, 0, run.device)
        assert figures["ce"] == pytest.approx(of_all["ce"])
        assert figures["kd"] == pytest.approx(of_two["kd"])
        assert teacher_nll(some) == pytest.approx(teacher_nll([whole[0], whole[2]]))
        known_teacher.poisoned = lambda ids: True
        with pytest.raises(TrainerError, match="no teacher's rows for any of the 3 held-out sequences"):
            source.held_out_batches()


def test_a_share_is_of_sequences_and_a_larger_one_holds_a_smaller() -> None:
    random = np.random.default_rng(0)
    hashes = [sequence_hash(random.integers(0, 9999, size=8)) for _ in range(4000)]
    found = {share: {h for h in hashes if is_chosen(h, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert [len(found[s]) for s in (0.0, 1.0)] == [0, 4000]
    assert len(found[0.1]) == pytest.approx(400, abs=80)
    assert len(found[0.5]) == pytest.approx(2000, abs=140)
    assert found[0.1] < found[0.5]
    # A content's hash, whatever the array's kind.
    ids = np.arange(8)
    assert sequence_hash(ids.astype(np.uint16)) == sequence_hash(ids.astype(np.int64))


def test_of_a_share_only_the_chosen_are_asked_about_and_kd_is_their_mean(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    overrides = {"teacher.share": 0.5, "student.optim.batch_size": 6}
    run, whole = (make_run(port=known_teacher.port, overrides=o) for o in (overrides, {"student.optim.batch_size": 6}))
    train, held_out = split_tail(packed)
    model: Any = token_level_learner(run, torch.ones(260)).model
    with TeacherLink.of(run.settings, run.stop) as link:
        batches = list(
            ScoredTargets(run, rows_of(run, link), train, held_out).training_batches(range(12), model, with_rows=True)
        )
        asked = {tuple(ids) for request in known_teacher.requests for ids in request}
        full = list(
            ScoredTargets(whole, rows_of(whole, link), train, held_out).training_batches(
                range(12), model, with_rows=True
            )
        )
    chosen = {
        tuple(ids) for i in range(len(train)) if is_chosen(sequence_hash(np.array(ids := train.sequence(i))), 0.5)
    }
    assert 0 < len(asked) < 0.8 * len(train)
    assert asked <= chosen
    mixed = 0
    for part, every in zip(batches, full, strict=True):
        assert part.kd is not None
        assert every.kd is not None
        assert part.tokens.equal(every.tokens)
        has = part.kd.has_row.any(1)
        mixed += int(0 < has.sum() < 6)
        weights = ObjectiveWeights(ce=1.0, kd=1.0, mse=0.0)
        with torch.no_grad():
            ours, theirs = (loss_of(model, batch, weights) for batch in (part, every))
            # CE is over all valid tokens; KD is what it is over the sequences with rows alone.
            assert ours.ce == pytest.approx(float(theirs.ce), rel=1e-6)
            if not has.any():
                assert float(ours.kd) == 0
                continue
            alone = StudentBatch(every.tokens[has], every.valid[has], every.kd.select(has))
            assert ours.kd == pytest.approx(float(loss_of(model, alone, weights).kd), rel=1e-5)
    assert mixed > 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher.share": 1.5}, r"teacher\.share"),
        ({"teacher.share": 0.5, "teacher.targets": "generate"}, "it says how much of the data is scored"),
        ({"teacher.share": 0.5, "student.weights.ce": 0}, "would teach nothing"),
    ],
)
def test_a_share_that_cannot_be_is_refused(make_run: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make_run(overrides=values)
