"""A run that starts from another one's checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.manifest import CheckpointError
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import AutoencoderResult, StudentResult
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training.pipeline import run_pipeline

TEXT = {"teacher.targets": "text", "student.objective": "chunk-ce"}


@pytest.fixture
def first(make_run: Any, packed: Any) -> Path:
    """The last checkpoint of a run."""
    run = make_run("first", overrides=TEXT)
    run_pipeline(run, packed.folder)
    return list_checkpoints(run.settings.checkpoints_dir / "first")[-1]


def test_it_begins_where_the_other_ended_and_resumes_without_it(make_run: Any, packed: Any, first: Path) -> None:
    overrides = TEXT | {"student.init_checkpoint": str(first)}
    with pytest.raises(Interrupted):
        run_pipeline(make_run("second", overrides=overrides, stop_at=("student", 5)), packed.folder)
    metrics = read_manifest(first).metrics
    # What it resumes from is its own.
    shutil.move(first, first.parent.parent.parent / "away")
    run = make_run("second", overrides=overrides)
    run_pipeline(run, packed.folder)
    result = StudentResult.read(run.folder / "student.json")
    assert result.curve[0].step == 0
    assert result.curve[0].ce == metrics["held_out_ce"]
    assert result.curve[-1].ce < result.curve[0].ce
    adopted = AutoencoderResult.read(run.folder / "autoencoder" / "evaluation.json")
    assert adopted.steps == 0
    theirs = AutoencoderResult.read(run.folder.parent / "first" / "autoencoder" / "evaluation.json")
    assert adopted.token_exact == theirs.token_exact
    # Another place to start from is another run.
    with pytest.raises(TrainerError, match=r"begun with student\.init_checkpoint = "):
        run_pipeline(make_run("second", overrides=TEXT), packed.folder)


def test_what_does_not_fit_is_named_before_anything_is_trained(make_run: Any, packed: Any, first: Path) -> None:
    other = TEXT | {"student.init_checkpoint": str(first), "student.model.num_layers": 2}
    with pytest.raises(TrainerError, match=r"init_checkpoint=.*step-00000012 has num_layers 1, the run's student 2"):
        run_pipeline(make_run("second", overrides=other), packed.folder)
    (first / "student" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        run_pipeline(make_run("third", overrides=TEXT | {"student.init_checkpoint": str(first)}), packed.folder)
    assert not (make_run("third").folder / "autoencoder").exists()
    with pytest.raises(ValueError, match="a student starts from one of them"):
        make_run("fourth", overrides=other | {"student.init_from": str(first)})
