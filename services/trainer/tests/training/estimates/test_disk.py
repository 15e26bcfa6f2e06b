from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.training.estimates import disk
from latentforge.trainer.training.estimates.disk import check_disks
from latentforge.trainer.training.estimates.dry_run import StageName, operations_of, saved_bytes
from latentforge.trainer.training.pipeline import run_pipeline
from latentforge.trainer.training.student import train_student

TEXT = {"teacher.targets": "text", "student.objective": "chunk-ce"}


@pytest.mark.parametrize("frozen", [{}, {"student.optim.groups": {"layers": {"rate": 0}, "outputs": {"rate": 0}}}])
def test_what_is_counted_is_what_a_run_saves(
    make_run: Any, packed: PackedData, autoencoder: Path, frozen: dict[str, Any]
) -> None:
    run = make_run(overrides=TEXT | frozen)
    state, checkpoint = saved_bytes(run.recipe, "student", run.tokenizer)
    train_student(run, *split_tail(packed), autoencoder)
    (newest,) = (run.folder / "state" / "student").glob("step-00000012")
    published = run.settings.checkpoints_dir / run.name / "step-00000012"
    for counted, place in ((state, newest), (checkpoint, published)):
        size = sum(path.stat().st_size for path in place.rglob("*.safetensors"))
        # Headers, and AdamW's counts of steps.
        assert 0 <= size - counted < 12_000


@pytest.mark.parametrize(("free", "is_warned"), [(10**9, False), (500_000, True)])
def test_a_disk_that_cannot_hold_all_is_warned_of(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, free: int, is_warned: bool
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    stages: list[StageName] = ["autoencoder", "student"]
    check_disks(make_run(), stages)
    said = make_run.output.getvalue()
    assert ("warning: the run will write about" in said) == is_warned
    assert ("3 states of 0.1 MB of the student, 3 checkpoints of 0.1 MB), and 0.5 MB are free" in said) == is_warned


def test_a_disk_that_cannot_hold_one_state_is_refused_before_any_work(
    make_run: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(overrides=TEXT)
    monkeypatch.setattr("latentforge.core.disk.free_bytes", lambda folder: 20_000)
    with pytest.raises(OSError, match=r"MB are needed and 0\.0 MB are free; make room"):
        run_pipeline(run, corpus)
    assert [path.name for path in run.folder.iterdir()] == ["status.json"]


def test_a_student_of_an_autoencoder_that_is_there_is_counted_with_it(make_run: Any) -> None:
    run = make_run(overrides=TEXT)
    width = 2 * run.recipe.autoencoder.model["hidden_size"]
    wide = make_run(overrides=TEXT | {"autoencoder.model.hidden_size": width}).recipe
    config = wide.autoencoder_config(run.tokenizer.vocab_size, run.tokenizer.pad_id)
    fits = {"student.model.logit_features": {"kind": "embeddings", "width": width}}
    student = make_run(overrides=TEXT | fits).recipe
    of_wide = saved_bytes(student, "student", run.tokenizer, config)[1]
    assert of_wide > saved_bytes(run.recipe, "student", run.tokenizer)[1]


def test_a_student_alone_is_refused_before_its_first_step_too(
    make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(overrides=TEXT)
    monkeypatch.setattr("latentforge.core.disk.free_bytes", lambda folder: 20_000)
    with pytest.raises(OSError, match="make room"):
        train_student(run, *split_tail(packed), autoencoder)
    assert not (run.folder / "metrics.jsonl").exists()


def test_counting_draws_no_random_numbers(make_run: Any) -> None:
    run = make_run(overrides=TEXT)
    before = torch.random.get_rng_state()
    for stage in get_args(StageName):
        saved_bytes(run.recipe, stage, run.tokenizer)
        operations_of(run.recipe, stage, run.tokenizer)
    assert torch.random.get_rng_state().equal(before)
