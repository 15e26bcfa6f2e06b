"""The student's training: text and the teacher's rows in, published checkpoints out."""

import hashlib
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from latentforge.core.manifest import TeacherId, list_checkpoints
from latentforge.core.records import write_atomically
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import WEIGHTS_FILE, load_autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, student_loss
from latentforge.model.student import Student
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluation import evaluate_student, teacher_nll, to_device, unigram_ce
from latentforge.trainer.interrupt import Interrupted
from latentforge.trainer.optimisation import Optimisation, autocast
from latentforge.trainer.order import step_generator
from latentforge.trainer.packing import PackedData, check_data
from latentforge.trainer.progress import StageProgress
from latentforge.trainer.publish import Publisher, publish_steps
from latentforge.trainer.run_context import RunContext
from latentforge.trainer.state import StageState
from latentforge.trainer.targets import TargetSource, meet_teacher, target_source
from latentforge.trainer.teacher_link import TeacherLink, TeacherLostError

RESULT = "student.json"


def train_student(
    run: RunContext,
    train: PackedData,
    held_out: PackedData,
    autoencoder_folder: Path,
    latent_size: int | None = None,
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Trains and publishes the student, going on from what is saved; a finished one is left alone.

    Args:
        run: the run.
        train: packed data for the steps, or for the prompts of the teacher's text.
        held_out: the same for validations.
        autoencoder_folder: a trained autoencoder.
        latent_size: the D that the user asked for; None takes the autoencoder's.
        fresh: the teacher's text is collected anew where what is there is of another teacher or other settings.

    Returns:
        steps, tokens, seconds, curve (held-out figures by step), unigram_ce, targets, teacher, cache or generated, and
        checkpoints.

    Raises:
        TrainerError: data, recipe, autoencoder, teacher and saved state do not fit, the loss is not finite, or the
            teacher stays away.
        Interrupted: asked to stop; the state is saved and the student published.
    """
    autoencoder = fitting_autoencoder(run, autoencoder_folder, latent_size)
    for data in (train, held_out):
        check_data(data, run.tokenizer, run.recipe.chunk_size)
    asked = run.recipe.teacher.targets
    identity = run.identity("student") | {
        "teacher": run.recipe.teacher.model_dump(exclude={"generate"} if asked == "score" else None),
        "train": train.identity(),
        "autoencoder_sha256": hashlib.sha256((autoencoder_folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
    }
    state = StageState(run.folder / "state" / "student", identity)
    if (run.folder / RESULT).is_file():
        run.console.print(f"student: finished before, {run.folder / RESULT}", highlight=False)
        finished: dict[str, Any] = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
        return finished
    run.use_threads(beside_gateway=True)
    with TeacherLink.of(run.settings, run.stop) as link:
        answer, kind = meet_teacher(run, link)
        with closing(target_source(run, link, train, held_out, answer, kind, fresh=fresh)) as source:
            training = StudentTraining(run, source, autoencoder, answer, state)
            training.load()
            training.loop()
            result = training.result()
    write_atomically(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


class StudentTraining:
    """One student's training from one source: what the loop needs and what it leaves behind."""

    def __init__(
        self,
        run: RunContext,
        source: TargetSource,
        autoencoder: Autoencoder,
        answer: pb.GetTeacherResponse,
        state: StageState,
    ) -> None:
        self.run, self.source, self.answer, self.state = run, source, answer, state
        self.recipe, self.seed = run.recipe.student, run.recipe.seed
        ids, settings = run.tokenizer, run.settings
        torch.manual_seed(self.seed)
        student = Student(
            run.recipe.student_config(ids.vocab_size, ids.pad_id, ids.eos_id, autoencoder.config.latent_size)
        )
        student.chunk_decoder.set_token_counts(torch.from_numpy(source.token_counts))
        self.model = LatentModel(autoencoder, student).to(run.device).train()
        self.optimisation = Optimisation(self.model, self.recipe.optim)
        self.weights = ObjectiveWeights(**self.recipe.weights.model_dump())
        self.teacher_id = TeacherId(backend=answer.backend, model=answer.model, revision=answer.revision)
        golden = self.recipe.golden_prompt, self.recipe.golden_tokens
        self.publisher = Publisher(settings.checkpoints_dir, run.name, ids, self.teacher_id, *golden)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self._seconds_before, self._started = 0.0, time.monotonic()

    def load(self) -> None:
        """Goes on from what an earlier process saved, if it did.

        Raises:
            TrainerError: it learnt from another teacher or other text.
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
        if saved["source"] != self.source.identity():
            raise TrainerError(
                f"this run was begun with {saved['source']}, now it is {self.source.identity()}; "
                "go on with what it was, or start anew with --fresh or --run NAME"
            )
        self.curve = saved["curve"]
        self.source.restore(saved["progress"])
        self._seconds_before = float(saved["seconds"])

    def loop(self) -> None:
        """Steps, validates, publishes and saves until the recipe's last step.

        Raises:
            Interrupted, TeacherLostError: after saving and publishing what is there.
        """
        run, recipe = self.run, self.recipe
        with StageProgress(
            run.folder, "student", recipe.optim.steps, run.status, first=self.step, console=run.console
        ) as progress:
            try:
                self.check, batches = self.source.begin(self.step, with_rows=bool(self.weights.kd))
                if self.step == 0:
                    self._validate(progress)
                while self.step < recipe.optim.steps:
                    if run.stop():
                        raise Interrupted
                    batch = to_device(next(batches), run.device)
                    values = self._take_step(batch)
                    progress.step(self.step, values, batch.tokens.numel(), note=self.source.note())
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
        places = list_checkpoints(self.run.settings.checkpoints_dir / self.run.name)
        return {
            "steps": self.step,
            "tokens": self.source.num_tokens(self.step),
            "seconds": self._spent(),
            "curve": self.curve,
            "unigram_ce": unigram_ce(self.source.token_counts, self.check),
            "held_out_tokens": sum(int(batch.valid.sum()) for batch in self.check),
            "targets": self.source.kind,
            "teacher": {
                **self.teacher_id.model_dump(),
                "fingerprint": self.answer.tokenizer_fingerprint,
                "held_out_nll": teacher_nll(self.check),
            },
            **self.source.report(),
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
        figures = evaluate_student(self.model, self.check, self.seed, self.run.device)
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
            "source": self.source.identity(),
            "progress": self.source.progress(),
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
