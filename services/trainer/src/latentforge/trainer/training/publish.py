"""Publishing: autoencoder, student and tokenizer together, with a golden continuation."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentforge.core.manifest import Golden, ManifestDraft, TeacherId, publish_checkpoint
from latentforge.model.generation import ChunkGenerator
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.recipe import StudentRecipe

# Weights and training records of the teacher may lie beside its tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files, and nothing else of its folder, to a new folder."""
    target.mkdir()
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def publish_steps(recipe: StudentRecipe) -> list[int]:
    """The steps after which a checkpoint is published: the last one, an early one, and those between at equal
    distances.

    The first comes after a fifth of the distance, so that a server has something to serve soon.
    """
    steps = recipe.optim.steps
    if recipe.publish_every is not None:
        return sorted({*range(recipe.publish_every, steps, recipe.publish_every), steps})
    distance = steps / (recipe.num_publishes - 1)
    later = [round(distance * i) for i in range(1, recipe.num_publishes)]
    return sorted({max(1, round(distance / 5)), *(max(1, s) for s in later)})


@dataclass(frozen=True)
class Publisher:
    """Publishes one run's students.

    Attributes:
        root: the checkpoints folder.
        run: the run's name.
        tokenizer: copied into every checkpoint.
        teacher: whom the student learns from.
        prompt: of the golden continuation.
        num_tokens: of the golden continuation.
    """

    root: Path
    run: str
    tokenizer: TextTokenizer
    teacher: TeacherId
    prompt: str
    num_tokens: int

    def publish(self, model: LatentModel, step: int, metrics: Mapping[str, float]) -> str:
        """Writes the checkpoint of ``step``, whole or not at all; gives its id."""
        config = model.student.config
        draft = ManifestDraft(
            chunk_size=config.chunk_size,
            latent_size=config.latent_size,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            teacher=self.teacher,
            metrics=dict(metrics),
            golden=self._golden(model),
        )

        def write(folder: Path) -> None:
            save_pretrained(model.autoencoder, folder / "autoencoder")
            save_pretrained(model.student, folder / "student")
            copy_tokenizer(self.tokenizer.folder, folder / "tokenizer")

        place = publish_checkpoint(self.root, self.run, step, draft, write)
        return f"{self.run}/{place.name}"

    def _golden(self, model: LatentModel) -> Golden:
        prompt_ids = self.tokenizer.encode_texts([self.prompt])[0]
        chunks = ChunkGenerator(model).generate(prompt_ids, self.num_tokens, SamplingParams(temperature=0))
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        return Golden(prompt=self.prompt, prompt_ids=prompt_ids, token_ids=token_ids)
