"""A student's training: text and the teacher's rows in; published checkpoints, or a token-level student, out."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.files import sha256_of
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import WEIGHTS_FILE, load_autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.text.packed import PackedData, check_data
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import StudentResult
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.choose import met_teacher, target_source
from latentforge.trainer.training.estimates.disk import check_disks
from latentforge.trainer.training.init_checkpoint import check_checkpoint, start_from_checkpoint
from latentforge.trainer.training.learners import Stage, latent_learner, token_level_learner
from latentforge.trainer.training.loop import StudentTraining
from latentforge.trainer.training.state import StageState, has_state


def train_student(
    run: RunContext,
    train: PackedData,
    held_out: PackedData,
    autoencoder_folder: Path,
    latent_size: int | None = None,
    *,
    fresh: bool = False,
) -> StudentResult:
    """Trains and publishes the student, resuming from what is saved; a finished one is left alone.

    Args:
        run: the run.
        train: packed data for the steps, or for the prompts of the teacher's text.
        held_out: the same for validations.
        autoencoder_folder: a trained autoencoder.
        latent_size: the D that the user asked for; None takes the autoencoder's.
        fresh: the teacher's text is collected anew where what is there is of another teacher or other settings.

    Raises:
        TrainerError: data, recipe, autoencoder, teacher and saved state do not fit, checkpoints of another run of this
            name are in the way, the loss is not finite, or the teacher stays away.
        Interrupted: asked to stop; the state is saved and the student published.
        OSError: the disk has no room for a state.
    """
    refuse_others_checkpoints(run)
    autoencoder = fitting_autoencoder(run, autoencoder_folder, latent_size)
    identity = {"autoencoder_sha256": sha256_of(autoencoder_folder / WEIGHTS_FILE)}
    return _train(run, train, held_out, "student", autoencoder, identity, fresh=fresh)


def train_token_level(
    run: RunContext, train: PackedData, held_out: PackedData, *, fresh: bool = False
) -> StudentResult:
    """As :func:`train_student`, for a student that writes one token a step; it needs no autoencoder.

    It has the recipe's backbone, and learns the recipe's CE and KD from the same batches.
    """
    return _train(run, train, held_out, "token-level", None, {}, fresh=fresh)


def result_file(run: RunContext, stage: Stage) -> Path:
    """Where a finished stage's figures are."""
    return run.folder / f"{stage}.json"


def refuse_others_checkpoints(run: RunContext) -> None:
    """Refuses to begin a student where an earlier run of the same name has published.

    A step that is published is kept, since a run that resumes may come by it again: one that this run has not made
    would be taken for its own, and served and measured as that. What this run publishes it has saved before.

    Raises:
        TrainerError: there are checkpoints, and neither a saved state nor a result that they could be of.
    """
    folder = run.settings.checkpoints_dir / run.name
    if result_file(run, "student").is_file() or has_state(state_folder(run, "student")):
        return
    if list_checkpoints(folder):
        raise TrainerError(
            f"{folder} holds checkpoints of an earlier run of this name, of which {run.folder} has no state: start "
            "anew with --fresh (FRESH=1), which removes them, or with --run NAME (RUN=NAME). In compose the two are "
            "volumes: remove both, runs and checkpoints, or set RUN=NAME"
        )


def state_folder(run: RunContext, stage: Stage) -> Path:
    """Where a stage's states are."""
    return run.folder / "state" / stage


def _train(
    run: RunContext,
    train: PackedData,
    held_out: PackedData,
    stage: Stage,
    autoencoder: Autoencoder | None,
    more_identity: dict[str, Any],
    *,
    fresh: bool,
) -> StudentResult:
    for data in (train, held_out):
        check_data(data, run.tokenizer, run.recipe.chunk_size)
    identity = run.identity("student") | {
        "teacher": run.recipe.teacher.identity(),
        "train": train.identity(),
        **more_identity,
    }
    state = StageState(
        state_folder(run, stage), identity, ranks=run.ranks, keep=run.recipe.student.keep_states, say=run.say
    )
    path = result_file(run, stage)
    if path.is_file():
        finished = StudentResult.read(path)
        if run.recipe.student.optim.steps <= finished.steps:
            state.history.refuse(stage)
            run.console.print(f"{stage}: finished before, {path}", highlight=False)
            return finished
    # Again in a whole run, with the autoencoder that there is now.
    check_disks(run, [stage], None if autoencoder is None else autoencoder.config)
    run.use_threads(beside_gateway=True)
    ranks = run.ranks
    with met_teacher(run) as teacher, ExitStack() as stack:
        # Text that the teacher writes is asked for once.
        with ranks.main_first():
            is_fresh = fresh and ranks.is_main
            source = stack.enter_context(target_source(run, teacher, train, held_out, fresh=is_fresh))
            source.prepare()
        counts = torch.from_numpy(source.token_counts)
        learner = token_level_learner(run, counts) if autoencoder is None else latent_learner(run, autoencoder, counts)
        place = None if has_state(state.folder) else check_checkpoint(run)
        if place is not None and isinstance(learner.model, LatentModel):
            start_from_checkpoint(learner.model.student, place)
        training = StudentTraining(run, source, learner, teacher, state)
        training.load()
        training.loop()
        with ranks.main_first():
            if ranks.is_main:
                training.result().write(path)
    return StudentResult.read(path)


def fitting_autoencoder(run: RunContext, folder: Path, latent_size: int | None) -> Autoencoder:
    """Loads an autoencoder and refuses one that this run cannot use.

    Raises:
        TrainerError: none is there, or K, D, vocabulary or pad id are others; names both values.
    """
    try:
        autoencoder = load_autoencoder(folder)
    except ValueError as error:
        raise TrainerError(
            f"{error}; train one with `trainer train autoencoder`, or give --ae-checkpoint DIR"
        ) from None
    config = autoencoder.config
    for name, theirs, ours in (
        ("chunk_size (K)", config.chunk_size, run.recipe.chunk_size),
        ("latent_size (D)", config.latent_size, latent_size or config.latent_size),
        ("vocab_size", config.vocab_size, run.vocab_size),
        ("pad_id", config.pad_id, run.tokenizer.pad_id),
    ):
        if theirs != ours:
            raise TrainerError(
                f"the autoencoder in {folder} has {name} {theirs}, this run has {ours}; train one that fits, or "
                "change the run"
            )
    return autoencoder
