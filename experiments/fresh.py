"""Models as an experiment would train them, with fresh weights: enough to time them."""

from collections.abc import Iterator

import torch

from experiments.commands import RECIPE, autoencoder_values, objective_of, student_values
from experiments.pareto import pareto_models
from experiments.plan import Model
from experiments.scales import Scale
from experiments.speed import AnyModel
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config.recipe import load_recipe

_EOS, _PAD = 0, 1


def speed_models(scale: Scale) -> Iterator[Model]:
    """The chart's students at the large vocabulary, and the token-level models with their backbones."""
    of = [m for m in pareto_models(scale) if m.vocabulary == "large"]
    sizes = {m.size for m in of if m.kind == "student"}
    return (m for m in of if m.size in sizes)


def fresh_model(scale: Scale, model: Model) -> AnyModel:
    """A model of the large vocabulary that has learnt nothing."""
    values = autoencoder_values(scale, model.autoencoder_plan) | student_values(scale, model)
    recipe = load_recipe(str(RECIPE), RECIPE.parent, values | {"student.objective": objective_of(model)})
    torch.manual_seed(model.seed)
    if model.kind == "token-level":
        return TokenLevelModel(recipe.token_level_config(scale.large_vocabulary, _PAD, _EOS))
    config = recipe.autoencoder_config(scale.large_vocabulary, _PAD)
    return LatentModel(Autoencoder(config), Student(recipe.student_config(_PAD, _EOS, config)))
