"""The two kinds of student that the training loop can teach, as they are before their first step."""

from dataclasses import dataclass
from typing import Literal

import torch

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.initialisation import start_student, start_token_level
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config.pretrained import open_student_source
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.training.models import loss_weights, new_student, new_token_level

Stage = Literal["student", "token-level"]


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        stage: names it on disk and in progress.
        model: what learns.
        weights: of the terms of its loss.
    """

    stage: Stage
    model: LatentModel | TokenLevelModel
    weights: ObjectiveWeights


def latent_learner(run: RunContext, autoencoder: Autoencoder, token_counts: torch.Tensor) -> Learner:
    """A student that writes K tokens a step."""
    torch.manual_seed(run.recipe.seed)
    student = new_student(run.recipe, run.tokenizer, autoencoder.config)
    _start_from(run, student, token_counts)
    model = LatentModel(autoencoder, student).to(run.device).train()
    return Learner("student", model, loss_weights(run.recipe))


def token_level_learner(run: RunContext, token_counts: torch.Tensor) -> Learner:
    """A student that writes one token a step: the baseline.

    It learns the tokens' terms of the objective; it has no latent for the others.
    """
    torch.manual_seed(run.recipe.seed)
    model = new_token_level(run.recipe, run.tokenizer)
    _start_from(run, model, token_counts)
    return Learner("token-level", model.to(run.device).train(), loss_weights(run.recipe, token_level=True))


def _start_from(run: RunContext, model: Student | TokenLevelModel, token_counts: torch.Tensor) -> None:
    """Sets what is known before the first step: how often each token stands in the text, perhaps a pretrained model."""
    model.set_token_counts(token_counts)
    recipe = run.recipe.student
    if recipe.init_from is None:
        return
    source = open_student_source(recipe)
    if isinstance(model, Student):
        start_student(model, source, recipe.parts, token_counts)
        return
    if "layers" in recipe.parts and model.max_tokens > source.max_positions:
        raise TrainerError(
            f"data.sequence_length is {model.max_tokens}, and student.init_from={recipe.init_from} was made for "
            f"{source.max_positions} tokens; shorten it"
        )
    start_token_level(model, source, recipe.parts)
