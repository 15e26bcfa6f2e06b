"""Publishing: a student is put where its readers look for it, whole or not at all.

A student that writes chunks becomes ``checkpoints/<run>/step-…/``: autoencoder, student and tokenizer together, with a
golden text, for inference to serve. Of a token-level student ``runs/<run>/token-level/`` holds the newest
weights.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.disk import check_room
from latentforge.core.files import replacing
from latentforge.core.manifest import MANIFEST, ManifestDraft, TeacherId, TextSample, step_folder
from latentforge.core.publishing import publish_checkpoint
from latentforge.core.retention import prune_checkpoints
from latentforge.model.finite import check_finite
from latentforge.model.golden import golden_of
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.model_card import CARD, model_card
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.config.sections import StudentRecipe
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.training.beginnings import beginnings

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


def copy_tokenizer(tokenizer: TextTokenizer, target: Path) -> None:
    """Copies a tokenizer's files, and nothing else of its folder, to a new folder.

    Where the run was told otherwise than the tokenizer does, the copy says whether sequences begin with bos.
    """
    target.mkdir()
    for name in _TOKENIZER_FILES:
        if (tokenizer.folder / name).is_file():
            shutil.copyfile(tokenizer.folder / name, target / name)
    if tokenizer.bos_id != tokenizer.own_bos_id:
        path = target / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        config["add_bos_token"] = tokenizer.bos_id is not None
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


def golden_text(tokenizer: TextTokenizer, sequences: Iterable[Sequence[int]], most_tokens: int) -> str:
    """The first text among sequences of the evaluation split, cut to ``most_tokens`` or a few less.

    Raises:
        TrainerError: none of them has any text, as of control tokens alone.
    """
    for text in beginnings(tokenizer, sequences, most_tokens):
        return text
    raise TrainerError("the evaluation split has no text, only control tokens; hold out more of the data")


def publish(
    run: RunContext,
    model: LatentModel | TokenLevelModel,
    teacher: TeacherId,
    step: int,
    metrics: Mapping[str, float],
    text: str,
    samples: tuple[TextSample, ...] = (),
) -> str:
    """Publishes the student after ``step`` steps; says where.

    Args:
        run: the run.
        model: what has learnt so far; left in evaluation mode.
        teacher: whom it learns from.
        step: how many steps it has made.
        metrics: measured of it at this step, for the manifest.
        text: what it is to be checked with by whoever loads it, see :func:`golden_text`.
        samples: what it writes by then.

    Raises:
        TrainerError: a metric, a weight or a logit of the text is not finite; nothing is published.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise _not_finite(step, f"{name} is {value}")
    try:
        check_finite(model)
    except ValueError as error:
        raise _not_finite(step, str(error)) from None
    if isinstance(model, TokenLevelModel):
        folder = _token_level_folder(run)
        with replacing(folder) as temporary:
            save_pretrained(model, temporary)
            copy_tokenizer(run.tokenizer, temporary / "tokenizer")
        return str(folder)

    try:
        golden = golden_of(model, text, run.tokenizer.begin(run.tokenizer.encode(text)), run.recipe.seed)
    except ValueError as error:
        raise _not_finite(step, str(error)) from None
    check_room(run.settings.checkpoints_dir, sum(w.numel() * w.element_size() for w in model.state_dict().values()))
    draft = ManifestDraft(
        chunk_size=model.chunk_size,
        latent_size=model.student.config.latent_size,
        tokenizer_fingerprint=run.tokenizer.fingerprint,
        bos_id=run.tokenizer.bos_id,
        end_ids=tuple(sorted(run.tokenizer.end_ids)),
        teacher=teacher,
        metrics=dict(metrics),
        golden=golden,
        samples=samples,
        ema=run.recipe.student.ema,
    )

    card = model_card(model, draft, f"{run.name}/{step_folder(step)}", run.recipe.license)

    def write(folder: Path) -> None:
        save_pretrained(model.autoencoder, folder / "autoencoder")
        save_pretrained(model.student, folder / "student")
        copy_tokenizer(run.tokenizer, folder / "tokenizer")
        (folder / CARD).write_text(card, encoding="utf-8")

    place = publish_checkpoint(run.settings.checkpoints_dir, run.name, step, draft, write)
    return f"{run.name}/{place.name}"


def prune(run: RunContext, model: LatentModel | TokenLevelModel) -> list[str]:
    """Removes the checkpoints that ``student.keep_checkpoints`` is to keep no longer; gives their names.

    Raises:
        OSError: the disk refuses.
    """
    keep = run.recipe.student.keep_checkpoints
    if keep is None or not isinstance(model, LatentModel):
        return []
    return prune_checkpoints(run.settings.checkpoints_dir / run.name, keep)


def is_published(run: RunContext, model: LatentModel | TokenLevelModel, step: int) -> bool:
    """Whether a step's checkpoint is there; a token-level student's folder does not say of which step it is."""
    place = run.settings.checkpoints_dir / run.name / step_folder(step)
    return isinstance(model, LatentModel) and (place / MANIFEST).is_file()


def published(run: RunContext, model: LatentModel | TokenLevelModel) -> list[str]:
    """Where the run's student has been published, oldest first."""
    if isinstance(model, LatentModel):
        places = list_checkpoints(run.settings.checkpoints_dir / run.name)
        return [f"{run.name}/{place.name}" for place in places]
    folder = _token_level_folder(run)
    return [str(folder)] if folder.is_dir() else []


def _token_level_folder(run: RunContext) -> Path:
    return run.folder / "token-level"


def _not_finite(step: int, what: str) -> TrainerError:
    return TrainerError(
        f"step {step}: the student is not published, because {what}. Lower student.optim.lr and start anew with "
        "--fresh or --run NAME"
    )
