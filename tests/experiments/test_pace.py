"""Speeds of models that are there; which figures come out, not how large they are."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments.__main__ import app
from experiments.pace import name_of, opened
from experiments.results import ModelResults
from latentforge.model.io import save_pretrained
from latentforge.model.token_level import TokenLevelModel

ROOT = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = ROOT / "models" / "stdlib-teacher", ROOT / "models" / "stdlib-student"


@pytest.fixture
def token_level(tmp_path: Path) -> Path:
    """A run's token-level student, of the teacher's sizes and untrained."""
    teacher = opened(TEACHER)
    assert isinstance(teacher, TokenLevelModel)
    folder = tmp_path / "cut" / "token-level"
    save_pretrained(TokenLevelModel(teacher.config.model_copy(update={"num_layers": 1})), folder)
    return folder


def test_a_pretrained_model_is_the_token_level_student_that_it_is() -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)(
            torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
        ).logits
        teacher = opened(TEACHER)
        assert isinstance(teacher, TokenLevelModel)
        ours = teacher.logits(ids)
    assert torch.allclose(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-3)


def test_each_model_stands_beside_the_first(token_level: Path, tmp_path: Path) -> None:
    folders = [str(TEACHER), str(STUDENT), str(token_level)]
    run = CliRunner().invoke(app, ["pace", *folders, "--tokens", "8", "--repeats", "1", "--results", str(tmp_path)])
    assert run.exit_code == 0, run.output
    (path,) = tmp_path.glob("pace_*.json")
    found = ModelResults.read(path).by_id
    names = ("stdlib-teacher", "stdlib-student", "cut")
    assert list(found) == [f"pace_{name}{suffix}" for name in names for suffix in ("", "_16")]
    assert found["pace_stdlib-teacher"].baseline is None
    student, teacher = found["pace_stdlib-student_16"], found["pace_stdlib-teacher_16"]
    assert (student.baseline, student.baseline_value) == ("stdlib-teacher", teacher.value)
    assert student.value
    assert teacher.value
    assert student.ratio == pytest.approx(student.value / teacher.value)


@pytest.mark.parametrize("wrong", ["empty", "twice"])
def test_what_is_no_model_is_named(tmp_path: Path, wrong: str) -> None:
    folders = [str(tmp_path)] if wrong == "empty" else [str(TEACHER), str(TEACHER)]
    run = CliRunner().invoke(app, ["pace", *folders])
    assert run.exit_code == 2
    said = "".join(run.output.split("│")).replace("\n", "")
    assert {"empty": "has neither checkpoints nor", "twice": "two models are called"}[wrong] in " ".join(said.split())


def test_a_token_level_student_is_called_as_its_run(token_level: Path) -> None:
    assert name_of(token_level) == "cut"
    assert name_of(STUDENT) == "stdlib-student"
