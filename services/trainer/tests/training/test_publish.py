import pytest

from latentforge.trainer.config.recipe import StudentRecipe
from latentforge.trainer.training.publish import publish_steps


def recipe(steps: int, **fields: int) -> StudentRecipe:
    return StudentRecipe.model_validate({"model": {}, "optim": {"steps": steps, "batch_size": 1, "lr": 0.1}, **fields})


@pytest.mark.parametrize(("num", "expected"), [(3, [10, 50, 100]), (5, [5, 25, 50, 75, 100])])
def test_the_first_checkpoint_is_early_and_the_last_is_the_end(num: int, expected: list[int]) -> None:
    assert publish_steps(recipe(100, num_publishes=num)) == expected


def test_every_so_many_steps_when_asked_for() -> None:
    assert publish_steps(recipe(100, publish_every=40)) == [40, 80, 100]


def test_a_very_short_run_publishes_what_it_can() -> None:
    assert publish_steps(recipe(1)) == [1]
