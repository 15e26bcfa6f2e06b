"""What is saved and published, in which order, and with which figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.io import load_autoencoder, load_student, load_token_level
from latentforge.model.latent_model import LatentModel
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.batches import held_out_batch, held_out_sequences
from latentforge.trainer.training import publisher
from latentforge.trainer.training.publish import publish
from latentforge.trainer.training.student import train_student, train_token_level
from latentforge.trainer.training.validation import evaluate_parts, evaluate_student

# One after every validation, and two between.
PUBLISHED = [1, 6, 12]


class Killed(BaseException):
    """Ends the process at once."""


def steps_of(run: Any) -> list[int]:
    return [read_manifest(place).step for place in list_checkpoints(run.settings.checkpoints_dir / run.name)]


def saved_step(run: Any, stage: str = "student") -> int:
    saved = max((run.folder / "state" / stage).glob("step-*"))
    return int(saved.name[5:])


@pytest.mark.parametrize("nth", range(3))
def test_a_step_is_saved_before_it_is_published_and_published_by_the_run_that_resumes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: Any, nth: int
) -> None:
    data = split_tail(packed)
    whole = make_run("whole", port=known_teacher.port)
    result = train_student(whole, *data, autoencoder)
    assert steps_of(whole) == PUBLISHED

    def killed_before(run: Any, model: Any, teacher: Any, step: int, *rest: Any) -> str:
        if step == PUBLISHED[nth]:
            raise Killed
        return publish(run, model, teacher, step, *rest)

    cut = make_run("cut", port=known_teacher.port)
    monkeypatch.setattr(publisher, "publish", killed_before)
    with pytest.raises(Killed):
        train_student(cut, *data, autoencoder)
    assert saved_step(cut) == PUBLISHED[nth]
    assert steps_of(cut) == PUBLISHED[:nth]
    monkeypatch.undo()
    resumed = train_student(make_run("cut", port=known_teacher.port), *data, autoencoder)
    assert steps_of(cut) == PUBLISHED
    assert resumed.curve == result.curve
    for step in PUBLISHED:
        ours, theirs = (run.settings.checkpoints_dir / run.name / f"step-{step:08d}" for run in (whole, cut))
        assert read_manifest(ours).metrics == read_manifest(theirs).metrics
        weights = [load_file(place / "student" / "model.safetensors") for place in (ours, theirs)]
        assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_a_published_step_is_kept_by_the_run_that_resumes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: Any
) -> None:
    data = split_tail(packed)

    def killed_after(run: Any, model: Any, teacher: Any, step: int, *rest: Any) -> str:
        publish(run, model, teacher, step, *rest)
        raise Killed

    run = make_run(port=known_teacher.port)
    monkeypatch.setattr(publisher, "publish", killed_after)
    with pytest.raises(Killed):
        train_student(run, *data, autoencoder)
    monkeypatch.undo()
    (place,) = list_checkpoints(run.settings.checkpoints_dir / run.name)
    before = read_manifest(place).created
    train_student(make_run(port=known_teacher.port), *data, autoencoder)
    assert steps_of(run) == PUBLISHED
    assert read_manifest(place).created == before


def test_a_checkpoints_metrics_are_of_its_own_step(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    train, held_out = split_tail(packed)
    # The second time behind a validation that was for no publishing.
    for step in (3, 8):
        interrupted = make_run(port=known_teacher.port, stop_at=("student", step))
        with pytest.raises(Interrupted):
            train_student(interrupted, train, held_out, autoencoder)
    run = make_run(port=known_teacher.port)
    result = train_student(run, train, held_out, autoencoder)
    places = list_checkpoints(run.settings.checkpoints_dir / run.name)
    assert steps_of(run) == [1, 3, 6, 8, 12]
    # Of the interruption nothing is seen in the curve.
    assert [point.step for point in result.curve] == [0, 4, 8, 12]
    sequences = held_out_sequences(held_out, run.recipe.student.validation_sequences)
    batches = [held_out_batch(s, known_teacher.rows(s.tolist(), 4)) for s in sequences]
    for place in places:
        model = LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student"))
        measured = evaluate_student(model, batches, run.recipe.seed, run.device)
        measured |= evaluate_parts(model, batches, run.recipe.seed)
        metrics = read_manifest(place).metrics
        assert metrics == pytest.approx({f"held_out_{name}": value for name, value in measured.items()}, abs=1e-5)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    held = {line["step"]: line for line in lines if line["stage"] == "student" and line["kind"] == "held_out"}
    assert set(held) == {0, 1, 3, 4, 6, 8, 12}
    worth = {"worth_backbone", "worth_latent", "worth_copy", "worth_window"}
    assert worth <= set(measured)
    # Published steps have them, in the curve too; where nothing is published they are not measured.
    assert {step for step, line in held.items() if worth & set(line)} == {1, 3, 6, 8, 12}
    assert all(worth <= set(held[step]) for step in steps_of(run))
    assert [point.worth_copy is not None for point in result.curve] == [False, False, False, True]
    assert read_manifest(places[-1]).metrics["held_out_worth_copy"] == result.curve[-1].worth_copy
    card = (places[-1] / "README.md").read_text()
    assert f"| `held_out_worth_backbone` | {result.curve[-1].worth_backbone:.4g} |" in card


def test_what_the_parts_are_worth_is_measured_once_where_there_is_no_backbone_too(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def counted(*args: Any) -> dict[str, float]:
        measured.append(evaluate_parts(*args))
        return measured[-1]

    monkeypatch.setattr("latentforge.trainer.training.loop.evaluate_parts", counted)
    run = make_run(port=known_teacher.port, overrides={"student.model.num_layers": 0})
    train_student(run, *split_tail(packed), autoencoder)
    assert len(measured) == len(steps_of(run))
    assert all("worth_copy" in worth and "worth_backbone" not in worth for worth in measured)


def test_a_stop_before_the_first_step_leaves_no_trace_in_the_curve(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    whole = train_student(make_run("whole", port=known_teacher.port), *data, autoencoder)

    def validated() -> bool:
        path = cut.folder / "metrics.jsonl"
        return path.is_file() and "held_out" in path.read_text()

    cut = replace(make_run("cut", port=known_teacher.port), stop=validated)
    with pytest.raises(Interrupted):
        train_student(cut, *data, autoencoder)
    assert saved_step(cut) == 0
    resumed = train_student(make_run("cut", port=known_teacher.port), *data, autoencoder)
    assert resumed.curve == whole.curve
    assert [point.step for point in resumed.curve] == [0, 4, 8, 12]


def test_a_token_level_student_is_published_again_by_the_run_that_resumes(
    known_teacher: Any, make_run: Any, packed: PackedData, monkeypatch: Any
) -> None:
    data = split_tail(packed)

    def killed_at_the_end(run: Any, model: Any, teacher: Any, step: int, *rest: Any) -> str:
        if step == PUBLISHED[-1]:
            raise Killed
        return publish(run, model, teacher, step, *rest)

    run = make_run(port=known_teacher.port)
    monkeypatch.setattr(publisher, "publish", killed_at_the_end)
    with pytest.raises(Killed):
        train_token_level(run, *data)
    monkeypatch.undo()
    early = load_token_level(run.folder / "token-level").embedding.weight
    train_token_level(make_run(port=known_teacher.port), *data)
    whole = make_run("whole", port=known_teacher.port)
    train_token_level(whole, *data)
    weights = [load_token_level(r.folder / "token-level").embedding.weight for r in (run, whole)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(early)


@pytest.mark.parametrize("kind", ["student", "token-level"])
def test_a_student_that_is_not_finite_is_not_published(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, kind: str
) -> None:
    overrides = {"student.optim.lr": 1e30, "student.optim.warmup_steps": 0, "student.publish_every": 1}
    run = make_run(port=known_teacher.port, overrides=overrides)
    folder = (autoencoder,) if kind == "student" else ()
    train: Any = train_student if kind == "student" else train_token_level
    with pytest.raises(TrainerError, match=r"step 1: the student is not published, because held_out_ce is nan\. Lower"):
        train(run, *split_tail(packed), *folder)
    assert steps_of(run) == []
    assert not (run.folder / "token-level").exists()


def test_the_status_has_the_curves_of_the_run_and_the_wait_for_its_teacher(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    run = make_run("status", port=known_teacher.port)
    result = train_student(run, *split_tail(packed), autoencoder)
    status = run.status
    assert [point["step"] for point in status.train] == list(range(1, result.steps + 1))
    assert {"step", "loss", "ce", "kd", "tokens_per_s"} <= status.train[-1].keys()
    # What is measured for publishing alone is there too.
    validated = [point.model_dump(exclude_none=True) for point in result.curve]
    assert [point for point in status.held_out if point in validated] == validated
    assert {point["step"] for point in status.held_out} == {point.step for point in result.curve} | set(PUBLISHED)
    assert status.teacher_wait_seconds is not None
    assert status.teacher_wait_seconds > 0


def refusing(monkeypatch: Any, refused: set[int]) -> None:
    """Publishing fails at steps of ``refused``, as on a full disk."""

    def refuse(run: Any, model: Any, teacher: Any, step: int, *about: Any) -> str:
        if step in refused:
            raise OSError(28, "No space left on device")
        return publish(run, model, teacher, step, *about)

    monkeypatch.setattr(publisher, "publish", refuse)


def test_what_cannot_be_published_is_a_warning_and_the_next_save_publishes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: Any
) -> None:
    refusing(monkeypatch, {1, 6})
    run = make_run(port=known_teacher.port)
    result = train_student(run, *split_tail(packed), autoencoder)
    # Saved after every fourth step.
    assert steps_of(run) == [4, 8, 12]
    assert result.steps == 12
    assert "warning: step 6 cannot be published ([Errno 28] No space left on device)" in make_run.output.getvalue()


def test_a_last_step_that_cannot_be_published_is_an_error_and_the_same_command_publishes_it(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: Any
) -> None:
    data, run = split_tail(packed), make_run(port=known_teacher.port)
    refusing(monkeypatch, {12})
    with pytest.raises(TrainerError, match=r"step 12 is saved and not published: .*run the same command"):
        train_student(run, *data, autoencoder)
    assert steps_of(run) == [1, 6]
    monkeypatch.undo()
    train_student(make_run(port=known_teacher.port), *data, autoencoder)
    assert steps_of(run) == PUBLISHED


def test_a_torn_state_is_passed_over_and_the_run_ends_with_the_same_bits(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    whole = make_run("whole", port=known_teacher.port)
    train_student(whole, *data, autoencoder)
    with pytest.raises(Interrupted):
        train_student(make_run("cut", port=known_teacher.port, stop_at=("student", 9)), *data, autoencoder)
    cut = make_run("cut", port=known_teacher.port)
    newest = cut.folder / "state" / "student" / "step-00000009"
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-100])
    train_student(cut, *data, autoencoder)
    assert "step-00000009 cannot be resumed from" in make_run.output.getvalue()
    assert "resuming from step 8" in make_run.output.getvalue()
    ours, theirs = (
        load_file(run.settings.checkpoints_dir / run.name / "step-00000012" / "student" / "model.safetensors")
        for run in (whole, cut)
    )
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_so_many_checkpoints_are_kept_as_the_recipe_says(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    overrides = {"student.publish_every": 2, "student.keep_checkpoints": 1, "student.optim.lr": 0.01}
    run = make_run(port=known_teacher.port, overrides=overrides)
    result = train_student(run, *split_tail(packed), autoencoder)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    ce = {line["step"]: line["ce"] for line in lines if line["stage"] == "student" and line["kind"] == "held_out"}
    best = min((step for step in ce if step and step % 2 == 0), key=ce.__getitem__)
    assert steps_of(run) == sorted({best, 12})
    assert result.checkpoints == [f"tiny/step-{step:08d}" for step in steps_of(run)]
