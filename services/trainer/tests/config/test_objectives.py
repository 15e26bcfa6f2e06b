from pathlib import Path
from typing import Any

import pytest
import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import save_pretrained
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.config.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, apply_objective
from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.training.student import train_student

FOLDER = TrainerSettings().recipes_dir
NONE = dict.fromkeys(("ce", "kd", "tv", "reverse_kl", "mse", "energy"), 0.0)


def test_what_a_recipe_sets_is_kept_and_the_rest_is_filled_in() -> None:
    student: dict[str, Any] = {"objective": "energy", "weights": {"ce": 0.5}, "model": {"hidden_size": 3}}
    apply_objective(student, None)
    assert student["weights"] == dict(NONE, ce=0.5, energy=1.0)
    assert student["model"] == {
        "hidden_size": 3,
        "head": "energy",
        "logit_features": {"kind": "autoencoder"},
        "chunk_decoder": {"kind": "none"},
        "induction": {"context": 0},
    }


def test_an_objective_asked_for_decides_over_the_recipe_but_keeps_its_sizes() -> None:
    student: dict[str, Any] = {
        "weights": {"ce": 0.5, "mse": 7.0},
        "model": {"chunk_decoder": {"width": 9, "kind": "gru"}, "induction": {"context": 3, "size": 9}},
    }
    apply_objective(student, "regressed-latent")
    assert student["objective"] == "regressed-latent"
    assert student["weights"] == dict(NONE, ce=1.0, kd=1.0, mse=1.0)
    assert student["model"]["chunk_decoder"] == {"width": 9, "kind": "none"}
    assert student["model"]["induction"] == {"context": 0, "size": 9}


def test_single_options_decide_over_an_objective() -> None:
    overrides = {"student.objective": "chunk-ce", "student.weights.kd": 0.25}
    weights = load_recipe("demo", FOLDER, overrides).student.weights
    assert (weights.ce, weights.kd) == (1.0, 0.25)
    assert load_recipe("demo", FOLDER).student.objective == DEFAULT_OBJECTIVE


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_a_student_and_publishes_it(
    name: str, known_teacher: Any, make_run: Any, packed: PackedData, tmp_path: Path
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.objective": name, "student.optim.steps": 4})
    torch.manual_seed(0)
    save_pretrained(Autoencoder(run.recipe.autoencoder_config(260, 1)), tmp_path / "ae")
    result = train_student(run, *split_tail(packed), tmp_path / "ae")
    assert result.curve[-1].step == 4
    assert result.curve[-1].ce != result.curve[0].ce
    assert result.checkpoints
