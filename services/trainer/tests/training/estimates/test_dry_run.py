from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.training.estimates.dry_run import StageName, TokenizerIds, build, stage_needs
from latentforge.trainer.training.estimates.peak_memory import PeakMemory
from latentforge.trainer.training.optimisation import Optimisation

IDS = TokenizerIds(260, 1, 3)


def test_what_is_held_at_once_is_counted_without_computing_it() -> None:
    with FakeTensorMode(), PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1
        view = b[10:]
        assert memory.held == 8000
        del b
        assert memory.held == 8000
        del view
        assert (memory.held, memory.peak) == (4000, 8000)
        del a
    assert memory.held == 0


RECURRENT = {"student.model.chunk_decoder.kind": "recurrent", "student.model.logit_features.kind": "none"}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("autoencoder", {}),
        ("student", {}),
        ("student", RECURRENT),
        ("student", {"student.model.positions": "tokens"}),
        ("student", RECURRENT | {"student.model.num_layers": 0}),
        ("token-level", {}),
    ],
)
def test_each_stage_is_gone_through(recipe_file: Path, stage: StageName, changes: dict[str, Any]) -> None:
    recipe = load_recipe(str(recipe_file), Path(), changes)
    needs = stage_needs(recipe, stage, IDS, torch.device("cpu"))
    real = build(recipe, stage, IDS, torch.device("cpu"))
    assert sum(needs.parameters.values()) == sum(p.numel() for p in real.parameters())
    assert needs.memory["weights"] == pytest.approx(4 * sum(p.numel() for p in real.parameters()), rel=0.05)
    assert needs.step_seconds is not None
    assert needs.measured_peak is not None
    assert needs.operations > 0


def test_the_peak_is_the_stages_own(recipe_file: Path) -> None:
    before = torch.ones(2**28)
    needs = stage_needs(load_recipe(str(recipe_file), Path()), "student", IDS, torch.device("cpu"))
    assert needs.measured_peak is not None
    assert needs.measured_peak > before.nbytes
    with_it = needs.measured_peak
    del before
    needs = stage_needs(load_recipe(str(recipe_file), Path()), "student", IDS, torch.device("cpu"))
    assert needs.measured_peak is not None
    assert needs.measured_peak < with_it - 2**29


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizers_state_is_that_of_the_groups_and_averages_are_counted(recipe_file: Path, optimizer: str) -> None:
    changes = {"student.optim.groups.layers": {"optimizer": optimizer}, "student.ema": 0.9}
    recipe = load_recipe(str(recipe_file), Path(), changes)
    needs = stage_needs(recipe, "token-level", IDS, None)
    model = build(recipe, "token-level", IDS, torch.device("cpu"))
    optimisation = Optimisation(model, recipe.student.optim, ema=0.9)
    loss = torch.stack([p.sum() for p in model.parameters()]).sum()
    optimisation.step(0, [(loss, {})])
    # Besides AdamW's counts of steps.
    held = sum(tensor.nbytes for tensor in optimisation.state().values() if tensor.ndim)
    assert needs.memory["optimizer"] + needs.memory["averages"] == held
    assert needs.state_bytes == held + needs.memory["averages"]


def test_parts_and_checkpointing_lower_what_is_estimated(recipe_file: Path) -> None:
    def activations(**changes: Any) -> int:
        asked = {"student.optim.batch_size": 8, "student.model.num_layers": 4} | changes
        recipe = load_recipe(str(recipe_file), Path(), asked)
        return stage_needs(recipe, "student", IDS, None).memory["activations"]

    whole = activations()
    assert activations(**{"student.optim.gradient_accumulation_steps": 4}) < whole / 2
    assert activations(**{"student.activation_checkpointing": True}) < whole


@pytest.mark.parametrize(("name", "gib"), [("gb10-single", 28), ("gb10-dual", 75)])
def test_the_gb10_recipes_fit_their_share_of_the_machine(name: str, gib: int) -> None:
    recipe = load_recipe(name, TrainerSettings().recipes_dir, {"student.model.num_layers": 2})
    ids = TokenizerIds(recipe.vocab_size or 0, recipe.data.pad_id or 0, recipe.data.eos_id or 0)
    needs = stage_needs(recipe, "autoencoder", ids, None)
    assert needs.step_seconds is None
    assert needs.why_not == "there is no such device here"
    assert sum(needs.memory.values()) < gib * 2**30
    optim = recipe.student.optim
    tokens = optim.steps * optim.batch_size * recipe.data.sequence_length
    # A few epochs of rows at the 4,000 tokens/s that an 80B scores on that machine: weeks at most.
    assert tokens * recipe.teacher.share / 4000 < 21 * 86400
