from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentforge.text.packed import PackedData
from latentforge.trainer.results import LiveStatus
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.training.estimates import forecast
from latentforge.trainer.training.estimates.dry_run import TokenizerIds, stage_needs
from latentforge.trainer.training.estimates.forecast import StudentForecast
from latentforge.trainer.training.pipeline import run_pipeline

IDS = TokenizerIds(260, 1, 3)


def test_the_students_time_follows_from_the_autoencoders_and_their_operations(make_run: Any) -> None:
    recipe = make_run(overrides={"student.optim.gradient_accumulation_steps": 2}).recipe
    later = StudentForecast(recipe, IDS)
    assert later(19, 2.0, 1000.0) is None
    assert later(20, 2.0, 59.0) is None
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    seconds = later(20, 2.0, 60.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    student, autoencoder = (stage_needs(recipe, stage, IDS, None) for stage in ("student", "autoencoder"))
    assert seconds == pytest.approx(12 * 2.0 * student.operations / autoencoder.operations)
    # Once it is known it is said to the end.
    assert later(21, 1.0, 2.0) == pytest.approx((seconds or 0) / 2)


def test_a_run_says_when_all_of_it_will_be_done(
    make_run: Any, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "WORTH_SECONDS", 0.0)
    text = {"teacher.targets": "text", "student.objective": "chunk-ce", "autoencoder.optim.steps": 30}

    def live(run: Any) -> LiveStatus:
        return LiveStatus.read(run.folder / "status.json")

    for stage, step, known in (("autoencoder", 10, False), ("autoencoder", 25, True), ("student", 3, True)):
        run = make_run(f"at-{stage}-{step}", overrides=text, stop_at=(stage, step))
        with pytest.raises(Interrupted):
            run_pipeline(run, packed.folder)
        said = live(run)
        assert (said.stage, said.step) == (stage, step)
        assert said.eta is not None
        if stage == "student":
            assert said.run_eta == said.eta
        elif known:
            assert said.run_eta is not None
            assert said.run_eta > said.eta
        else:
            assert said.run_eta is None
    assert "s  run eta " in run.console.file.getvalue()
    # What was counted on the way changed nothing of what the autoencoder learnt.
    monkeypatch.setattr(forecast, "WORTH_SECONDS", float("inf"))
    other = make_run("other", overrides=text, stop_at=("student", 3))
    with pytest.raises(Interrupted):
        run_pipeline(other, packed.folder)
    ours, theirs = (load_file(r.folder / "autoencoder" / "model.safetensors") for r in (run, other))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
