import os
import subprocess
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
    assert sorted(p.name for p in (tmp_path / "s").glob("step-*")) == ["step-00000010", "step-00000100"]


def test_an_unreadable_state_says_what_to_do(tmp_path: Path) -> None:
    state = StageState(tmp_path / "s", {})
    model, optimisation = trained(1)
    state.save(1, model, optimisation, {})
    (tmp_path / "s" / "step-00000001" / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainerError, match=r"step-00000001 cannot be resumed from .*--fresh"):
        state.load(model, optimisation)


@pytest.mark.parametrize("torn", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_torn_state_is_passed_over_with_a_warning_and_written_anew(tmp_path: Path, torn: str) -> None:
    said: list[str] = []
    state = StageState(tmp_path / "s", {}, keep=2, say=said.append)
    for steps in (1, 2):
        state.save(steps, *trained(steps), {"steps": steps})
    path = tmp_path / "s" / "step-00000002" / torn
    path.write_bytes(path.read_bytes()[:-3])
    model, optimisation = trained(0)
    assert state.load(model, optimisation) == (1, {"steps": 1})
    before, _ = trained(1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert "step-00000002 cannot be resumed from" in said[0]
    assert "resuming from step 1" in said[0]
    state.save(2, *trained(2), {"steps": 2})
    assert StageState(tmp_path / "s", {}).load(model, optimisation) == (2, {"steps": 2})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_one_error_that_loses_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        state = StageState(disk / "s", {}, keep=2)
        model, optimisation = trained(1)
        state.save(1, model, optimisation, {})
        state.save(2, *trained(2), {})
        # More than is free, then more than was said to be needed.
        large = nn.Linear(300, 300)
        with pytest.raises(OSError, match=r"No space|0\.4 MB are needed and 0\.\d MB are free"):
            state.save(3, large, optimisation, {})
        (disk / "filler").write_bytes(b"x" * 150_000)
        with pytest.raises(OSError, match=r"cannot be written|No space"):
            state.save(4, model, optimisation, {"long": "x" * 200_000})
        assert [p.name for p in (disk / "s").glob("step-*")][-1:] != []
        assert {p.name for p in (disk / "s").iterdir()} <= {"identity.json", "step-00000001", "step-00000002"}
        assert state.load(*trained(0)) is not None
    finally:
        subprocess.run(["umount", disk], check=True)


def test_older_states_make_room_but_the_last_whole_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StageState(tmp_path / "s", {}, keep=3)
    for steps in (1, 2, 3):
        state.save(steps, *trained(steps), {})

    def full(folder: Path, num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentforge.trainer.training.state.check_room", full)
    with pytest.raises(OSError, match="No space"):
        state.save(4, *trained(4), {})
    assert [p.name for p in (tmp_path / "s").glob("step-*")] == ["step-00000003"]


def test_a_state_of_an_interruption_pushes_no_regular_one_out(tmp_path: Path) -> None:
    state = StageState(tmp_path / "s", {}, keep=2)
    model, optimisation = trained(1)
    for step in (10, 20, 30):
        state.save(step, model, optimisation, {"at": step})
    for step in (33, 37):
        state.save(step, model, optimisation, {"at": step}, regular=False)
    assert sorted(p.name for p in (tmp_path / "s").glob("step-*")) == [f"step-000000{n}" for n in (20, 30, 37)]
    assert state.load(model, optimisation) == (37, {"at": 37})
    assert state.load(model, optimisation, regular=True) == (30, {"at": 30})
    # At a step of the interval that is saved already, it is regular from now on.
    state.save(37, model, optimisation, {"at": 37})
    assert state.load(model, optimisation, regular=True) == (37, {"at": 37})
