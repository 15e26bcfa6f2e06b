from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.history import History
from latentforge.trainer.run.identity import claim
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training.student import train_student


def identity(**optim: Any) -> dict[str, Any]:
    return {"seed": 0, "student": {"optim": {"steps": 10, "lr": 0.1, **optim}, "model": {"width": 8}}}


def history(folder: Path, **optim: Any) -> History:
    claim(folder, identity(), "--fresh", lambda field: True)
    return History(folder, identity(**optim))


def test_what_is_changed_is_said_and_kept_and_compared_with_the_next_time(tmp_path: Path) -> None:
    said: list[str] = []
    history(tmp_path).record(0, said.append)
    assert (said, history(tmp_path).changes) == ([], [])
    history(tmp_path, lr=0.05, steps=20).record(4, said.append)
    assert said == ["student.optim.lr: 0.1 -> 0.05 from step 4 on", "student.optim.steps: 10 -> 20 from step 4 on"]
    history(tmp_path, lr=0.05, steps=20).record(6, said.append)
    assert len(said) == 2
    with pytest.raises(TrainerError, match=r"student was made with student\.optim\.lr = 0\.05, now it is 0\.1"):
        history(tmp_path, steps=20).refuse("student")
    # An older state than that of the change knows nothing of it.
    history(tmp_path, lr=0.01).record(2, said.append)
    assert said[2:] == ["student.optim.lr: 0.1 -> 0.01 from step 2 on"]
    (change,) = history(tmp_path).changes
    assert (change.step, change.changed) == (2, {"student.optim.lr": (0.1, 0.01)})


def test_a_setting_that_the_recipe_did_not_have_then_is_compared_with_its_default(tmp_path: Path) -> None:
    claim(tmp_path, {"data": {"sequence_length": 32}}, "--fresh")
    claim(tmp_path, {"data": {"sequence_length": 32, "bos": None}}, "--fresh")
    with pytest.raises(TrainerError, match=r"data\.bos = None, now it is True"):
        claim(tmp_path, {"data": {"sequence_length": 32, "bos": True}}, "--fresh")


def weights(run: Any) -> Any:
    return load_file(run.settings.checkpoints_dir / run.name / "step-00000012" / "student" / "model.safetensors")


def test_a_run_is_extended_and_learns_at_another_rate_from_then_on(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data, port = split_tail(packed), known_teacher.port
    # Without a fall the rates of both are the same until the first one ends.
    flat = {"student.optim.decay_from": 0.99}
    for name in ("extended", "slower"):
        train_student(make_run(name, port=port, overrides=flat | {"student.optim.steps": 8}), *data, autoencoder)
    runs = {
        "whole": make_run("whole", port=port, overrides=flat),
        "extended": make_run("extended", port=port, overrides=flat),
        "slower": make_run("slower", port=port, overrides=flat | {"student.optim.lr": 0.0001}),
    }
    results: Any = {name: train_student(run, *data, autoencoder) for name, run in runs.items()}
    found = {name: weights(run) for name, run in runs.items()}
    assert all(value.equal(found["extended"][name]) for name, value in found["whole"].items())
    assert not all(value.equal(found["slower"][name]) for name, value in found["whole"].items())
    assert results["whole"].history == []
    (change,) = results["slower"].history
    assert change.step == 8
    assert change.changed == {"student.optim.lr": (0.003, 0.0001), "student.optim.steps": (8, 12)}
    assert "student.optim.steps: 8 -> 12 from step 8 on" in make_run.output.getvalue()


def test_fewer_steps_than_are_made_and_what_may_not_change_are_refused(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data, port = split_tail(packed), known_teacher.port
    with pytest.raises(Interrupted):
        train_student(make_run(port=port, stop_at=("student", 5)), *data, autoencoder)
    for overrides, why in (
        ({"student.optim.steps": 2}, r"student\.optim\.steps is 2, but \d steps are made; set it to"),
        ({"seed": 1}, "seed = 0, now it is 1"),
        ({"student.optim.batch_size": 3}, r"batch_size = 2, now it is 3"),
    ):
        with pytest.raises(TrainerError, match=why):
            train_student(make_run(port=port, overrides=overrides), *data, autoencoder)
