import pytest
import torch
from torch import nn

from latentforge.trainer.config.sections import OptimRecipe
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.training.optimisation import Optimisation, learning_rate

RECIPE = OptimRecipe(steps=100, batch_size=1, lr=1.0, warmup_steps=9)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_rises_then_falls_to_zero(decay: str) -> None:
    recipe = RECIPE.model_copy(update={"decay": decay, "decay_from": 0.5})
    rates = [learning_rate(s, recipe) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[100] == 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer(what: str) -> None:
    model = nn.Linear(2, 2)
    before = [p.clone() for p in model.parameters()]
    y = model(torch.ones(2)).sum()
    # The root's slope at 0 is infinite, its value is not.
    loss = y * float("nan") if what == "loss" else (y - y).sqrt() + y
    with pytest.raises(TrainerError, match=rf"step 7: the {what} is not finite \(ce 1\.5\)"):
        Optimisation(model, RECIPE).step(7, [(loss, {"ce": torch.tensor(1.5)})])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_gradient_is_clipped_and_its_norm_reported() -> None:
    model = nn.Linear(2, 2)
    recipe = RECIPE.model_copy(update={"clip_norm": 0.5})
    optimisation = Optimisation(model, recipe)
    values = optimisation.step(0, [(100 * model(torch.ones(2)).sum(), {})])
    assert values["grad_norm"] > 100
    assert values["lr"] == pytest.approx(0.1)
