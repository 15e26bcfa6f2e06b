"""A recipe's models as they are before anything is known of text or of a pretrained model, and their loss's weights.

What the recipe never trains is frozen in them.
"""

from typing import Protocol

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.config import AutoencoderConfig
from latentforge.model.losses import ObjectiveWeights
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.training.groups import freeze


class TokenIds(Protocol):
    """What models must know of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...


def new_autoencoder(recipe: Recipe, ids: TokenIds) -> Autoencoder:
    autoencoder = Autoencoder(recipe.autoencoder_config(ids.vocab_size, ids.pad_id))
    freeze(autoencoder, recipe.autoencoder.optim)
    return autoencoder


def new_student(recipe: Recipe, ids: TokenIds, autoencoder: AutoencoderConfig) -> Student:
    """A student of this autoencoder."""
    student = Student(recipe.student_config(ids.pad_id, ids.eos_id, autoencoder))
    if recipe.student.activation_checkpointing:
        # The recipe has layers then.
        assert student.backbone is not None
        student.backbone.activation_checkpointing_enable()
    freeze(student, recipe.student.optim)
    return student


def new_token_level(recipe: Recipe, ids: TokenIds) -> TokenLevelModel:
    """A token-level student with the recipe's backbone."""
    model = TokenLevelModel(recipe.token_level_config(ids.vocab_size, ids.pad_id, ids.eos_id))
    if recipe.student.activation_checkpointing:
        model.backbone.activation_checkpointing_enable()
    freeze(model, recipe.student.optim)
    return model


def loss_weights(recipe: Recipe, *, token_level: bool = False) -> ObjectiveWeights:
    """Of the student's terms; a token-level one has no latent, and learns those of tokens alone."""
    of_latents = {"mse": 0.0, "energy": 0.0} if token_level else {}
    return ObjectiveWeights(**recipe.student.weights.model_dump() | of_latents)
