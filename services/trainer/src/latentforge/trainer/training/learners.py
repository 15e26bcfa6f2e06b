"""The two kinds of student that the training loop can teach."""

import shutil

import torch

from latentforge.core.manifest import TeacherId, list_checkpoints
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.training.backbone import load_backbone
from latentforge.trainer.training.publish import Publisher, copy_tokenizer


class LatentLearner:
    """A student that writes K tokens a step; published with its autoencoder for inference to serve."""

    stage = "student"

    def __init__(
        self, run: RunContext, autoencoder: Autoencoder, token_counts: torch.Tensor, teacher: TeacherId
    ) -> None:
        recipe, ids = run.recipe, run.tokenizer
        torch.manual_seed(recipe.seed)
        student = Student(recipe.student_config(ids.pad_id, ids.eos_id, autoencoder.config))
        student.set_token_counts(token_counts)
        if recipe.student.init_backbone is not None:
            load_backbone(student.backbone, recipe.student.init_backbone)
        self.model = LatentModel(autoencoder, student).to(run.device).train()
        self.weights = ObjectiveWeights(**recipe.student.weights.model_dump())
        self._folder = run.settings.checkpoints_dir / run.name
        golden = recipe.student.golden_prompt, recipe.student.golden_tokens
        self._publisher = Publisher(run.settings.checkpoints_dir, run.name, ids, teacher, *golden)

    def publish(self, step: int, figures: dict[str, float]) -> str:
        return self._publisher.publish(self.model, step, figures)

    def places(self) -> list[str]:
        return [f"{self._folder.name}/{place.name}" for place in list_checkpoints(self._folder)]


class TokenLevelLearner:
    """A student that writes one token a step: the rival; runs/<run>/token-level/ holds its newest weights.

    It learns the tokens' terms of the objective, CE and KD; it has no latent for the others.
    """

    stage = "token-level"

    def __init__(self, run: RunContext, token_counts: torch.Tensor) -> None:
        recipe, ids = run.recipe, run.tokenizer
        torch.manual_seed(recipe.seed)
        model = TokenLevelModel(recipe.token_level_config(ids.vocab_size, ids.pad_id, ids.eos_id))
        model.set_token_counts(token_counts)
        if recipe.student.init_backbone is not None:
            load_backbone(model.backbone, recipe.student.init_backbone)
        self.model = model.to(run.device).train()
        self.weights = ObjectiveWeights(ce=recipe.student.weights.ce, kd=recipe.student.weights.kd, mse=0.0)
        self._tokenizer = run.tokenizer
        self._folder = run.folder / self.stage

    def publish(self, step: int, figures: dict[str, float]) -> str:
        temporary = self._folder.with_name(f".{self._folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        save_pretrained(self.model, temporary)
        copy_tokenizer(self._tokenizer.folder, temporary / "tokenizer")
        shutil.rmtree(self._folder, ignore_errors=True)
        temporary.rename(self._folder)
        return str(self._folder)

    def places(self) -> list[str]:
        return [str(self._folder)] if self._folder.is_dir() else []
