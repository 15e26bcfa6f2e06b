"""The student's training: sequences and the teacher's rows in, published checkpoints out."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentforge.core.manifest import TeacherId, list_checkpoints
from latentforge.core.records import write_atomically
from latentforge.core.sparse_rows import SparseRows
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.chunks import shift_right
from latentforge.model.io import WEIGHTS_FILE, load_autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, student_loss
from latentforge.model.student import Student
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluation import evaluate_student, teacher_nll, to_device, unigram_ce
from latentforge.trainer.interrupt import Interrupted
from latentforge.trainer.optimisation import Optimisation, autocast
from latentforge.trainer.order import batch_indices, phase, step_generator
from latentforge.trainer.packing import PackedData, check_data
from latentforge.trainer.progress import StageProgress
from latentforge.trainer.publish import Publisher, publish_steps
from latentforge.trainer.run_context import RunContext
from latentforge.trainer.state import StageState
from latentforge.trainer.teacher_rows import CacheCount, TeacherLostError, TeacherRows, kd_targets

RESULT = "student.json"


def train_student(
    run: RunContext, train: PackedData, held_out: PackedData, autoencoder_folder: Path, latent_size: int | None = None
) -> dict[str, Any]:
    """Trains and publishes the student, going on from what is saved; a finished one is left alone.

    Args:
        run: the run.
        train: packed data for the steps.
        held_out: packed data for validations.
        autoencoder_folder: a trained autoencoder.
        latent_size: the D that the user asked for; None takes the autoencoder's.

    Returns:
        steps, tokens, seconds, curve (held-out figures by step), unigram_ce, teacher, cache and checkpoints.

    Raises:
        TrainerError: data, recipe, autoencoder, teacher and saved state do not fit, the loss is not finite, or the
            teacher stays away.
        Interrupted: asked to stop; the state is saved and the student published.
    """
    autoencoder = fitting_autoencoder(run, autoencoder_folder, latent_size)
    for data in (train, held_out):
        check_data(data, run.tokenizer, run.recipe.chunk_size)
    identity = run.identity("student") | {
        "teacher": run.recipe.teacher.model_dump(),
        "train": train.identity(),
        "autoencoder_sha256": hashlib.sha256((autoencoder_folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
    }
    state = StageState(run.folder / "state" / "student", identity)
    if (run.folder / RESULT).is_file():
        run.console.print(f"student: finished before, {run.folder / RESULT}", highlight=False)
        finished: dict[str, Any] = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
        return finished
    run.use_threads(beside_gateway=True)
    settings = run.settings
    with TeacherRows(
        settings.gateway_target,
        run.recipe.teacher.top_k,
        dtype=run.recipe.teacher.logprob_dtype,
        ahead=settings.prefetch_batches,
        in_flight=settings.prefetch_in_flight,
        patience=settings.teacher_patience_seconds,
        stop=run.stop,
    ) as teacher:
        training = StudentTraining(run, train, held_out, autoencoder, teacher, state)
        training.load()
        training.loop()
        result = training.result()
    write_atomically(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


class StudentTraining:
    """One student's training against one gateway: what the loop needs and what it leaves behind."""

    def __init__(
        self,
        run: RunContext,
        train: PackedData,
        held_out: PackedData,
        autoencoder: Autoencoder,
        teacher: TeacherRows,
        state: StageState,
    ) -> None:
        self.run, self.train, self.teacher, self.state = run, train, teacher, state
        self.recipe, self.seed = run.recipe.student, run.recipe.seed
        ids, settings = run.tokenizer, run.settings
        torch.manual_seed(self.seed)
        student = Student(
            run.recipe.student_config(ids.vocab_size, ids.pad_id, ids.eos_id, autoencoder.config.latent_size)
        )
        self.token_counts = np.bincount(train.tokens, minlength=student.config.vocab_size)
        student.chunk_decoder.set_token_counts(torch.from_numpy(self.token_counts))
        self.model = LatentModel(autoencoder, student).to(run.device).train()
        self.optimisation = Optimisation(self.model, self.recipe.optim)
        self.weights = ObjectiveWeights(**self.recipe.weights.model_dump())
        self.check = held_out_sequences(held_out, self.recipe.validation_sequences)
        self.answer = teacher.teacher(ids.fingerprint, student.config.vocab_size)
        self.teacher_id = TeacherId(backend=self.answer.backend, model=self.answer.model, revision=self.answer.revision)
        golden = self.recipe.golden_prompt, self.recipe.golden_tokens
        self.publisher = Publisher(settings.checkpoints_dir, run.name, ids, self.teacher_id, *golden)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self._seconds_before, self._started = 0.0, time.monotonic()

    def load(self) -> None:
        """Goes on from what an earlier process saved, if it did.

        Raises:
            TrainerError: it learnt from another teacher.
        """
        found = self.state.load(self.model, self.optimisation)
        if found is None:
            return
        self.step, saved = found
        if saved["teacher"] != self.teacher_id.model_dump():
            raise TrainerError(
                f"this run learns from {saved['teacher']}, {self.run.settings.gateway_target} is "
                f"{self.teacher_id.model_dump()}; start that gateway, or start anew with --fresh or --run NAME"
            )
        self.curve = saved["curve"]
        self.teacher.cache = CacheCount(**saved["cache"])
        self._seconds_before = float(saved["seconds"])

    def loop(self) -> None:
        """Steps, validates, publishes and saves until the recipe's last step.

        Raises:
            Interrupted, TeacherLostError: after saving and publishing what is there.
        """
        run, recipe = self.run, self.recipe
        check_asked = self.teacher.ask(self.check)
        batches = (training_sequences(run, self.train, s) for s in range(self.step, recipe.optim.steps))
        rows_of_batches = self.teacher.stream(batches) if self.weights.kd else None
        with StageProgress(
            run.folder, "student", recipe.optim.steps, run.status, first=self.step, console=run.console
        ) as progress:
            try:
                self.check_rows = self.teacher.take(check_asked)
                if self.step == 0:
                    self._validate(progress)
                while self.step < recipe.optim.steps:
                    if run.stop():
                        raise Interrupted
                    rows = next(rows_of_batches) if rows_of_batches else None
                    batch = to_device(training_batch(run, self.train, self.step, rows), run.device)
                    values = self._take_step(batch)
                    cache = self.teacher.cache
                    progress.step(self.step, values, batch.tokens.numel(), note=f"cache {cache.hits}/{cache.sequences}")
                    if self.step % recipe.validate_every == 0 or self.step == recipe.optim.steps:
                        self._validate(progress)
                    if self.step in publish_steps(recipe):
                        self._publish(progress)
                    if self.step % recipe.save_every == 0:
                        self._save()
            except (Interrupted, TeacherLostError):
                self._save()
                if self.step:
                    self._publish(progress)
                raise
            self._save()

    def result(self) -> dict[str, Any]:
        """What the run's table and its readers are told."""
        cache, stats = self.teacher.cache, self.teacher.cache_stats()
        places = list_checkpoints(self.run.settings.checkpoints_dir / self.run.name)
        return {
            "steps": self.step,
            "tokens": self.step * self.recipe.optim.batch_size * self.train.meta.sequence_length,
            "seconds": self._spent(),
            "curve": self.curve,
            "unigram_ce": unigram_ce(self.token_counts, self.check),
            "held_out_tokens": sum(len(s) - 1 for s in self.check),
            "teacher": {
                **self.teacher_id.model_dump(),
                "fingerprint": self.answer.tokenizer_fingerprint,
                "held_out_nll": teacher_nll(self.check_rows),
            },
            "cache": {
                "hits": cache.hits,
                "misses": cache.sequences - cache.hits,
                "rows": cache.rows,
                "rows_from_cache": cache.rows_from_cache,
                "saved_seconds": round(stats.saved_seconds, 2),
            },
            "checkpoints": [f"{self.run.name}/{place.name}" for place in places],
        }

    def _take_step(self, batch: StudentBatch) -> dict[str, float]:
        run, step = self.run, self.step
        with autocast(run.recipe, run.device):
            loss = student_loss(self.model, batch, self.weights, step_generator(self.seed, step, run.device))
        parts = {"loss": loss.total, "ce": loss.ce, "kd": loss.kd, "mse": loss.mse, "energy": loss.energy}
        values = self.optimisation.step(step, loss.total, parts)
        self.step += 1
        return values

    def _validate(self, progress: StageProgress) -> None:
        figures = evaluate_student(self.model, self.check, self.check_rows, self.seed, self.run.device)
        self.model.train()
        self.curve.append({"step": self.step, **figures})
        progress.validation(self.step, figures)

    def _publish(self, progress: StageProgress) -> None:
        last = self.curve[-1] if self.curve else {}
        figures = {f"held_out_{name}": value for name, value in last.items() if name != "step"}
        progress.say(f"published {self.publisher.publish(self.model, self.step, figures)}")
        self.model.train()

    def _save(self) -> None:
        progressed = {
            "curve": self.curve,
            "cache": asdict(self.teacher.cache),
            "seconds": self._spent(),
            "teacher": self.teacher_id.model_dump(),
        }
        self.state.save(self.step, self.model, self.optimisation, progressed)

    def _spent(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 2)


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


def held_out_sequences(data: PackedData, count: int) -> list[Tensor]:
    """Up to ``count`` sequences, evenly spread, int64 [L] each."""
    picked = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.int64))
    return [data.sequence(int(i)) for i in picked]


def training_sequences(run: RunContext, data: PackedData, step: int) -> list[Tensor]:
    """The sequences of one step as they are packed: what the teacher is asked about."""
    indices = batch_indices(len(data), run.recipe.student.optim.batch_size, run.recipe.seed, step)
    return [data.sequence(int(i)) for i in indices]


def training_batch(run: RunContext, data: PackedData, step: int, rows: Sequence[SparseRows] | None) -> StudentBatch:
    """The batch of one step: sequences, masks and rows, each sequence shifted by a phase of its own."""
    recipe, seed = run.recipe, run.recipe.seed
    sequences = training_sequences(run, data, step)
    pads = [
        phase(recipe.student.phase_probability, recipe.chunk_size, seed, step, row) for row in range(len(sequences))
    ]
    shifted = list(zip(sequences, pads, strict=True))
    tokens = torch.stack([shift_right(s, p, run.tokenizer.pad_id) for s, p in shifted])
    valid = torch.stack([shift_right(torch.ones(len(s), dtype=torch.bool), p, False) for s, p in shifted])
    kd = kd_targets(rows, tokens.shape[1], pads) if rows is not None else None
    return StudentBatch(tokens, valid, kd)
