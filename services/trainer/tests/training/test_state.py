from pathlib import Path

import pytest
import torch
from torch import nn

from latentforge.trainer.config.sections import OptimRecipe
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.state import StageState

RECIPE = OptimRecipe(steps=10, batch_size=1, lr=0.1)


def trained(steps: int) -> tuple[nn.Module, Optimisation]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimisation = Optimisation(model, RECIPE)
    for step in range(steps):
        optimisation.step(step, [(model(torch.ones(4)).square().sum(), {})])
    return model, optimisation


def test_a_saved_state_comes_back(tmp_path: Path) -> None:
    state = StageState(tmp_path / "s", {"lr": 0.1})
    model, optimisation = trained(3)
    state.save(3, model, optimisation, {"curve": [1.5]})
    other, other_optimisation = trained(0)
    assert StageState(tmp_path / "s", {"lr": 0.1}).load(other, other_optimisation) == (3, {"curve": [1.5]})
    for m, o in ((model, optimisation), (other, other_optimisation)):
        o.step(3, [(m(torch.ones(4)).square().sum(), {})])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_newest_whole_state_counts(tmp_path: Path) -> None:
    state = StageState(tmp_path / "s", {})
    model, optimisation = trained(1)
    assert state.load(model, optimisation) is None
    for step in (9, 10, 100):
        state.save(step, model, optimisation, {})
    (tmp_path / "s" / ".step-00000200.1").mkdir()
    loaded = state.load(model, optimisation)
    assert loaded is not None
    assert loaded[0] == 100
    assert [p.name for p in (tmp_path / "s").glob("step-*")] == ["step-00000100"]


def test_an_unreadable_state_says_what_to_do(tmp_path: Path) -> None:
    state = StageState(tmp_path / "s", {})
    model, optimisation = trained(1)
    state.save(1, model, optimisation, {})
    (tmp_path / "s" / "step-00000001" / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainerError, match=r"step-00000001 cannot be resumed from .*--fresh"):
        state.load(model, optimisation)
