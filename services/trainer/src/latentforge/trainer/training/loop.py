"""A student's training loop: what both kinds of student go through from the first step to the last."""

import time
from typing import Protocol

from torch import nn

from latentforge.core.manifest import TeacherId
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import CacheFigures, CurvePoint, GeneratedFigures, StudentResult, TeacherFigures
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.device import autocast
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.targets.base import TargetSource
from latentforge.trainer.teacher.connection import TeacherLostError
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.publish import publish_steps
from latentforge.trainer.training.state import StageState
from latentforge.trainer.training.validation import evaluate_student, teacher_nll, to_device, unigram_ce


class Learner(Protocol):
    """What is trained, and where it goes."""

    @property
    def stage(self) -> str:
        """Names it on disk and in progress."""

    @property
    def model(self) -> LatentModel | TokenLevelModel:
        """What learns."""

    @property
    def weights(self) -> ObjectiveWeights:
        """Of the terms of its loss."""

    def publish(self, step: int, figures: dict[str, float]) -> str:
        """Puts the model where its readers look for it, whole or not at all; says where."""

    def places(self) -> list[str]:
        """Where it has been published, oldest first."""


class StudentTraining:
    """One student's training from one source: what the loop needs and what it leaves behind."""

    def __init__(
        self,
        run: RunContext,
        source: TargetSource,
        learner: Learner,
        answer: pb.GetTeacherResponse | None,
        state: StageState,
    ) -> None:
        self.run, self.source, self.learner, self.answer, self.state = run, source, learner, answer, state
        self.recipe, self.seed = run.recipe.student, run.recipe.seed
        self.model: nn.Module = learner.model
        self.optimisation = Optimisation(self.model, self.recipe.optim)
        self.teacher_id = teacher_id(answer)
        self.step = 0
        self.curve: list[CurvePoint] = []
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
        self.curve = [CurvePoint.model_validate(point) for point in saved["curve"]]
        self.source.restore(saved["progress"])
        self._seconds_before = float(saved["seconds"])

    def loop(self) -> None:
        """Steps, validates, publishes and saves until the recipe's last step.

        Raises:
            Interrupted, TeacherLostError: after saving and publishing what is there.
        """
        run, recipe = self.run, self.recipe
        with StageProgress(
            run.folder, self.learner.stage, recipe.optim.steps, run.status, first=self.step, console=run.console
        ) as progress:
            try:
                self.check, batches = self.source.begin(
                    self.step, self.learner.model, with_rows=bool(self.learner.weights.kd)
                )
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

    def result(self) -> StudentResult:
        """What the run's table and its readers are told."""
        report = self.source.report()
        return StudentResult(
            steps=self.step,
            tokens=self.source.num_tokens(self.step),
            seconds=self._spent(),
            curve=self.curve,
            unigram_ce=unigram_ce(self.source.token_counts, self.check),
            held_out_tokens=sum(int(batch.valid.sum()) for batch in self.check),
            targets=self.source.kind,
            teacher=self._teacher(),
            cache=report if isinstance(report, CacheFigures) else None,
            generated=report if isinstance(report, GeneratedFigures) else None,
            checkpoints=self.learner.places(),
        )

    def _teacher(self) -> TeacherFigures | None:
        if self.answer is None:
            return None
        return TeacherFigures(
            **self.teacher_id.model_dump(),
            fingerprint=self.answer.tokenizer_fingerprint,
            held_out_nll=teacher_nll(self.check),
        )

    def _take_step(self, batch: StudentBatch) -> dict[str, float]:
        run, step = self.run, self.step
        with autocast(run.recipe, run.device):
            generator = step_generator(self.seed, step, run.device)
            loss = loss_of(self.learner.model, batch, self.learner.weights, generator)
        if batch.own_text:
            # What is measured on the student's own text is no figure of the data.
            parts = {"own_text_loss": loss.total, "own_text_kd": loss.kd}
        else:
            weights = vars(self.learner.weights)
            parts = {"loss": loss.total} | {name: getattr(loss, name) for name in weights if weights[name]}
        values = self.optimisation.step(step, loss.total, parts)
        self.step += 1
        return values

    def _validate(self, progress: StageProgress) -> None:
        figures = evaluate_student(self.learner.model, self.check, self.seed, self.run.device)
        self.model.train()
        self.curve.append(CurvePoint(step=self.step, **figures))
        progress.validation(self.step, figures)

    def _publish(self, progress: StageProgress) -> None:
        last = self.curve[-1].model_dump(exclude={"step"}, exclude_none=True) if self.curve else {}
        figures = {f"held_out_{name}": value for name, value in last.items()}
        progress.say(f"published {self.learner.publish(self.step, figures)}")
        self.model.train()

    def _save(self) -> None:
        progressed = {
            "curve": [point.model_dump(exclude_none=True) for point in self.curve],
            "source": self.source.identity(),
            "progress": self.source.progress(),
            "seconds": self._spent(),
            "teacher": self.teacher_id.model_dump(),
        }
        self.state.save(self.step, self.model, self.optimisation, progressed)

    def _spent(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 2)


def teacher_id(answer: pb.GetTeacherResponse | None) -> TeacherId:
    """Whom a student learns from; without a teacher all its fields are "none"."""
    if answer is None:
        return TeacherId(backend="none", model="none", revision="none")
    return TeacherId(backend=answer.backend, model=answer.model, revision=answer.revision)
