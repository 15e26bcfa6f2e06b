"""The autoencoder's training: chunks of the training stream in, runs/<run>/autoencoder/ out."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.initialisation import start_autoencoder
from latentforge.model.io import save_pretrained
from latentforge.text.packed import PackedData, check_data
from latentforge.trainer.config.pretrained import open_source
from latentforge.trainer.config.sections import AutoencoderRecipe
from latentforge.trainer.data.sequence_order import batch_indices, epoch_phase, step_random
from latentforge.trainer.data.sequence_stream import SequenceStream
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import EVALUATION, AutoencoderResult, ReconstructionFigures
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.training.estimates.forecast import StudentForecast
from latentforge.trainer.training.models import new_autoencoder
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.parallel import ParallelModel
from latentforge.trainer.training.rewinds import BrokenLossError, Rewinds
from latentforge.trainer.training.state import StageState, check_steps
from latentforge.trainer.training.step_losses import autoencoder_losses
from latentforge.trainer.training.validation import evaluate_autoencoder

# Of 10^10 tokens the held-out chunks are 62 million.
_EVALUATED_CHUNKS = 2**17


def train_autoencoder(
    run: RunContext, train: PackedData, held_out: PackedData, later: StudentForecast | None = None
) -> AutoencoderResult:
    """Trains the autoencoder, resuming from what is saved; a finished one is left alone.

    Its figures are those of :func:`evaluate_autoencoder` on all held-out data, or 131,072 chunks of it. ``later`` is of
    the student that is trained after it, for the progress.

    Raises:
        TrainerError: data, recipe and saved state do not fit, or the loss breaks down too often.
        Interrupted: asked to stop; the state is saved.
    """
    recipe = run.recipe.autoencoder
    for data in (train, held_out):
        check_data(data, run.tokenizer, run.recipe.chunk_size)
    ranks = run.ranks
    identity = run.identity("autoencoder") | {"train": train.identity()}
    folder = run.folder / "state" / "autoencoder"
    state = StageState(folder, identity, ranks=ranks, keep=recipe.keep_states, say=run.say)
    out = run.folder / "autoencoder"
    if (out / EVALUATION).is_file():
        state.history.refuse("autoencoder")
        run.console.print(f"autoencoder: finished before, {out}", highlight=False)
        return AutoencoderResult.read(out / EVALUATION)

    run.use_threads(beside_gateway=False)
    training = AutoencoderTraining(run, train, held_out, state)
    training.load()
    with StageProgress(
        run.progress_folder,
        "autoencoder",
        recipe.optim.steps,
        run.status,
        first=training.step,
        later=later,
        console=run.console,
        more=run.sinks,
    ) as progress:
        training.loop(progress)
        with ranks.main_first():
            if ranks.is_main:
                result = training.result(progress)
                save_pretrained(training.autoencoder, out)
                result.write(out / EVALUATION)
    return AutoencoderResult.read(out / EVALUATION)


class AutoencoderTraining:
    """An autoencoder's training: its model, how far it is, and what it leaves behind."""

    def __init__(self, run: RunContext, train: PackedData, held_out: PackedData, state: StageState) -> None:
        self.run, self.held_out, self.state = run, held_out, state
        self.recipe, self.seed = run.recipe.autoencoder, run.recipe.seed
        self.stream = training_text(train, self.recipe.text_tokens, self.seed)
        self.autoencoder = untrained_autoencoder(run)
        # Small beside any student: whole on every process, whatever the student is.
        self.parallel = ParallelModel(self.autoencoder, Autoencoder.loss, run.ranks, "ddp", run.device)
        self.optimisation = Optimisation(self.autoencoder, self.recipe.optim, run.ranks)
        self.rewinds = Rewinds("autoencoder", self.recipe)
        self.step = 0
        self.loss: float | None = None
        self._seconds_before, self._started = 0.0, time.monotonic()

    def load(self) -> None:
        """Resumes from what an earlier process saved, if it did."""
        found = self.state.load(self.autoencoder, self.optimisation)
        if found is not None:
            self._restore(*found)
            self._seconds_before = float(found[1]["seconds"])
        check_steps("autoencoder.optim.steps", self.recipe.optim.steps, self.step)

    def _restore(self, step: int, saved: dict[str, Any]) -> None:
        self.step, self.loss = step, saved["loss"]
        self.rewinds.restore(saved.get("rewinds"))

    def loop(self, progress: StageProgress) -> None:
        """Steps, saves and validates until the recipe's last step.

        Raises:
            Interrupted: asked to stop; the state is saved.
            BrokenLossError: the loss is not finite or a spike, and the run may not go back.
            OSError: the state of the last step, or of an interruption, cannot be saved.
        """
        run, recipe, steps = self.run, self.recipe, self.recipe.optim.steps
        self.autoencoder.train()
        while self.step < steps:
            if run.ranks.any(run.stop()):
                self.state.save(self.step, self.autoencoder, self.optimisation, self._progress(), regular=False)
                raise Interrupted
            chunks_nk = self._chunks()
            losses = autoencoder_losses(run.recipe, self.parallel, chunks_nk.to(run.device), self.step)
            try:
                values = self.optimisation.step(self.step, losses)
                self.rewinds.check(self.step, values["ce"])
            except BrokenLossError as error:
                self.rewinds.go_back(error, self.step, self._last_regular, progress.say)
                run.status.count("rewinds")
                self.state.replace_progress(self.step, self._progress())
                continue
            self.loss = values["ce"]
            self.step += 1
            progress.step(self.step, values, chunks_nk.numel())
            is_last = self.step == steps
            # Before the save, as the student does: a kill between the two would leave a step without its figures.
            if self.step % recipe.validate_every == 0 and not is_last and run.ranks.is_main:
                progress.validation(self.step, self._figures(recipe.validation_chunks))
                self.autoencoder.train()
            if (self.step % recipe.save_every == 0 or is_last) and not self.state.try_save(
                self.step, self.autoencoder, self.optimisation, self._progress(), is_last=is_last
            ):
                run.status.count("failed_saves")

    def result(self, progress: StageProgress) -> AutoencoderResult:
        """Measures what has been learnt, and what was there before."""
        figures = self._figures(_EVALUATED_CHUNKS)
        progress.validation(self.step, figures)
        # Most tokens come back before anything is learnt: what training is worth is the rest.
        untrained = evaluate_autoencoder(untrained_autoencoder(self.run), self.held_out, self.seed, _EVALUATED_CHUNKS)
        config = self.autoencoder.config
        return AutoencoderResult.model_validate(
            {
                "k": config.chunk_size,
                "d": config.latent_size,
                "steps": self.step,
                "seconds": round(self._spent(), 2),
                "loss": self.loss,
                "skipped": self.rewinds.skipped,
                "untrained": {name: untrained[name] for name in ReconstructionFigures.model_fields},
                **figures,
            }
        )

    def _chunks(self) -> Tensor:
        (step,) = self.rewinds.data_steps(self.step, self.step + 1)
        config, vocab_size = self.autoencoder.config, self.autoencoder.config.vocab_size
        return chunk_batch(self.stream, self.recipe, config.chunk_size, config.pad_id, vocab_size, self.seed, step)

    def _last_regular(self) -> int | None:
        found = self.state.load(self.autoencoder, self.optimisation, regular=True)
        if found is None:
            return None
        self._restore(*found)
        return self.step

    def _figures(self, num_chunks: int) -> dict[str, float]:
        return evaluate_autoencoder(self.autoencoder, self.held_out, self.seed, num_chunks)

    def _progress(self) -> dict[str, Any]:
        return {"seconds": self._spent(), "loss": self.loss, "rewinds": self.rewinds.progress()}

    def _spent(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


def untrained_autoencoder(run: RunContext) -> Autoencoder:
    """The run's autoencoder before its first step: the same at every call."""
    torch.manual_seed(run.recipe.seed)
    autoencoder = new_autoencoder(run.recipe, run.tokenizer)
    init_from = run.recipe.autoencoder.init_from
    if init_from is not None:
        start_autoencoder(autoencoder, open_source("autoencoder.init_from", init_from))
    return autoencoder.to(run.device)


def training_text(data: PackedData, max_tokens: int | None, seed: int) -> SequenceStream:
    """The ids that chunks are taken from, [num_tokens]: all, or the sequences that a student of this seed reads first.

    Those follow one another in the order in which it reads them, so that of any phase but the first a chunk in 256
    (2,048 tokens per sequence, K = 8) is of two of them, as others are of two documents.

    Raises:
        TrainerError: ``max_tokens`` is less than a sequence.
    """
    if max_tokens is None:
        return SequenceStream(data)
    length = data.meta.sequence_length
    if max_tokens < length:
        raise TrainerError(
            f"autoencoder.text_tokens={max_tokens} is less than a sequence; set it to {length} or more, or leave it out"
        )
    first = batch_indices(len(data), min(len(data), max_tokens // length), seed, 0)
    return SequenceStream(data, first)


def chunk_batch(
    stream: SequenceStream | NDArray[Any],
    recipe: AutoencoderRecipe,
    chunk_size: int,
    pad_id: int,
    vocab_size: int,
    seed: int,
    step: int,
) -> Tensor:
    """The chunks of one step, int64 [batch_size, K]: of the text at the epoch's phase, some padded on the left, some
    random.

    Args:
        stream: all training tokens one after another.
        recipe: batch size and shares.
        chunk_size, pad_id, vocab_size: of the autoencoder.
        seed, step: decide everything else.
    """
    batch_size = recipe.optim.batch_size
    num_random = round(recipe.random_share * batch_size)
    num_text = batch_size - num_random
    random = step_random(seed, step)
    # An epoch cuts the whole stream at one phase, 0 … K−1, and the next at another: in time every run of K tokens is a
    # chunk. So many chunks as the last phase leaves, so that an epoch has as many at each.
    num_chunks = (len(stream) - chunk_size + 1) // chunk_size
    starts = batch_indices(num_chunks, num_text, seed, step) * chunk_size
    # As batch_indices counts them; a batch that ends one epoch and begins the next has two phases.
    epochs = (step * num_text + np.arange(num_text)) // num_chunks
    starts += (
        np.array([epoch_phase(chunk_size, seed, int(e)) for e in np.unique(epochs)])[epochs - epochs[0]]
        if num_text
        else 0
    )
    text_nk = stream[starts[:, None] + np.arange(chunk_size)].astype(np.int64)
    if chunk_size > 1:
        for row in range(round(recipe.pad_share * num_text)):
            pads = int(random.integers(1, chunk_size))
            text_nk[row] = np.concatenate([np.full(pads, pad_id), text_nk[row, : chunk_size - pads]])
    random_nk = random.integers(vocab_size, size=(num_random, chunk_size))
    return torch.from_numpy(np.concatenate([text_nk, random_nk]))
