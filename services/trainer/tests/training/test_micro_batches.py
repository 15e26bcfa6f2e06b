"""A batch in parts against the batch at once, over whole runs, and what --bf16 and its kin do to a recipe."""

from typing import Any

import pytest
import torch

from latentforge.model.io import load_student
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.results import read_progress
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.micro_batches import micro_batches
from latentforge.trainer.training.student import train_student, train_token_level

# Sequences of a step that the parts do not divide.
BATCH = 5


def losses(run: Any, stage: str, name: str) -> torch.Tensor:
    points = [p for p in read_progress(run.folder) if p.stage == stage and p.kind == "train"]
    return torch.tensor([p.figures[name] for p in points], dtype=torch.float64)


def test_parts_are_neighbours_of_nearly_one_size() -> None:
    assert micro_batches(5, 3) == [slice(0, 1), slice(1, 3), slice(3, 5)]
    assert micro_batches(2, 4) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("objective", ["chunk-kd-mse", "chunk-kd-energy"])
def test_a_student_learns_the_same_in_parts(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Any, objective: str
) -> None:
    found = []
    for parts in (1, 3):
        overrides = {
            "student.objective": objective,
            "student.optim.batch_size": BATCH,
            "student.optim.gradient_accumulation_steps": parts,
            "student.optim.steps": 20,
        }
        run = make_run(f"parts-{parts}", port=known_teacher.port, overrides=overrides)
        train_student(run, *split_tail(packed), autoencoder)
        found.append(losses(run, "student", "loss"))
    # Not to the bit: sums of the gradient are made in another order.
    assert len(found[0]) == 20
    assert ((found[1] - found[0]).abs() / found[0]).max() <= 1e-5


def test_an_autoencoder_learns_the_same_in_parts(make_run: Any, packed: PackedData) -> None:
    found = []
    for parts in (1, 3):
        run = make_run(f"parts-{parts}", overrides={"autoencoder.optim.gradient_accumulation_steps": parts})
        train_autoencoder(run, *split_tail(packed))
        found.append(losses(run, "autoencoder", "ce"))
    assert ((found[1] - found[0]).abs() / found[0]).max() <= 1e-5


@pytest.mark.parametrize("kind", ["student", "token-level"])
def test_activation_checkpointing_changes_no_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Any, kind: str
) -> None:
    found = []
    for on in (False, True):
        overrides = {"student.activation_checkpointing": on, "student.model.num_layers": 2}
        run = make_run(f"checkpointing-{on}", port=known_teacher.port, overrides=overrides)
        if kind == "student":
            train_student(run, *split_tail(packed), autoencoder)
        else:
            train_token_level(run, *split_tail(packed))
        found.append(losses(run, kind, "loss"))
    assert found[0].equal(found[1])


def test_a_run_resumes_in_other_parts(known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Any) -> None:
    data, overrides = split_tail(packed), {"student.optim.batch_size": 4}
    train_student(make_run("whole", port=known_teacher.port, overrides=overrides), *data, autoencoder)
    cut = make_run("cut", port=known_teacher.port, overrides=overrides, stop_at=("student", 5))
    with pytest.raises(Interrupted):
        train_student(cut, *data, autoencoder)
    more = overrides | {"student.optim.gradient_accumulation_steps": 2, "student.activation_checkpointing": True}
    resumed = train_student(make_run("cut", port=known_teacher.port, overrides=more), *data, autoencoder)
    weights = [load_student(cut.settings.checkpoints_dir / place / "student") for place in resumed.checkpoints[-1:]]
    whole = load_student(cut.settings.checkpoints_dir / "whole" / "step-00000012" / "student")
    for (name, a), b in zip(whole.named_parameters(), weights[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
