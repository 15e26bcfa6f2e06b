"""Starting a run where another one's published checkpoint is: its autoencoder and its student, a new schedule."""

from pathlib import Path

import torch

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.model.io import load_autoencoder, load_student, save_pretrained
from latentforge.model.student import Student
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import EVALUATION, AutoencoderResult
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.training.validation import evaluate_autoencoder

# How long its texts may be is the run's to say.
_MAY_DIFFER = {"max_chunks"}


def check_checkpoint(run: RunContext) -> Path | None:
    """The checkpoint that the run starts from, whole and of the run's tokenizer; None where there is none.

    Raises:
        CheckpointError: it is not what was published.
        TrainerError: it is of other ids.
    """
    place = run.recipe.student.init_checkpoint
    if place is None:
        return None
    manifest = verify_checkpoint(place)
    if manifest.tokenizer_fingerprint != run.tokenizer.fingerprint:
        raise TrainerError(
            f"student.init_checkpoint={place} has the tokenizer {manifest.tokenizer_fingerprint}, the run's "
            f"({run.tokenizer.folder}) is {run.tokenizer.fingerprint}; set TOKENIZER_PATH and the teacher to its own"
        )
    return place


def adopt_autoencoder(run: RunContext, held_out: PackedData, place: Path) -> AutoencoderResult:
    """Makes a checkpoint's autoencoder the run's, measured on the run's held-out data."""
    out = run.folder / "autoencoder"
    with run.ranks.main_first():
        if run.ranks.is_main and not (out / EVALUATION).is_file():
            autoencoder = load_autoencoder(place / "autoencoder").to(run.device)
            config, figures = autoencoder.config, evaluate_autoencoder(autoencoder, held_out, run.recipe.seed)
            head = {"k": config.chunk_size, "d": config.latent_size, "steps": 0, "seconds": 0.0, "loss": None}
            save_pretrained(autoencoder, out)
            AutoencoderResult.model_validate(head | figures).write(out / EVALUATION)
    return AutoencoderResult.read(out / EVALUATION)


@torch.no_grad()
def start_from_checkpoint(student: Student, place: Path) -> None:
    """Copies a checkpoint's student into one that has not learnt yet.

    Raises:
        TrainerError: its config is another; names the first field that differs, and both values.
    """
    theirs = load_student(place / "student")
    ours = student.config.model_dump(exclude=_MAY_DIFFER)
    for name, value in theirs.config.model_dump(exclude=_MAY_DIFFER).items():
        if ours[name] != value:
            raise TrainerError(
                f"student.init_checkpoint={place} has {name} {value!r}, the run's student {ours[name]!r}; give "
                f"student.model the same"
            )
    student.load_state_dict(theirs.state_dict())
