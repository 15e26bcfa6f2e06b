"""A student's training loop: what both kinds of student go through from the first step to the last."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from latentforge.core.manifest import TeacherId
from latentforge.model.losses import StudentBatch, loss_of
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import (
    CacheFigures,
    CurvePoint,
    GeneratedFigures,
    KeptFigures,
    StudentResult,
    TeacherFigures,
)
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.targets.base import TargetSource
from latentforge.trainer.targets.choose import MetTeacher
from latentforge.trainer.teacher.connection import TeacherLostError
from latentforge.trainer.training.compiling import compile_layers
from latentforge.trainer.training.learners import Learner
from latentforge.trainer.training.optimisation import Optimisation
from latentforge.trainer.training.parallel import ParallelModel
from latentforge.trainer.training.publish import publish_steps, published
from latentforge.trainer.training.publisher import Publisher
from latentforge.trainer.training.rewinds import BrokenLossError, Rewinds
from latentforge.trainer.training.state import StageState, check_steps
from latentforge.trainer.training.step_losses import student_losses
from latentforge.trainer.training.validation import (
    evaluate_parts,
    evaluate_student,
    teacher_nll,
    to_device,
    unigram_ce,
)

T = TypeVar("T")

# Whom a student without a teacher learns from, in its manifest and its state.
NO_TEACHER = TeacherId(backend="none", model="none", revision="none")


class StudentTraining:
    """One student's training from one source: what the loop needs and what it leaves behind."""

    def __init__(
        self,
        run: RunContext,
        source: TargetSource,
        learner: Learner,
        teacher: MetTeacher | None,
        state: StageState,
    ) -> None:
        self.run, self.source, self.learner, self.teacher, self.state = run, source, learner, teacher, state
        self.recipe, self.seed = run.recipe.student, run.recipe.seed
        if run.ranks.size > 1 and run.recipe.distributed == "fsdp" and self.recipe.on_policy.share:
            raise TrainerError(
                f"student.on_policy.share={self.recipe.on_policy.share} with distributed='fsdp': no process has the "
                "whole student to write with; set distributed to ddp, or share to 0"
            )
        if self.recipe.compile:
            self._compile()
        self.parallel = ParallelModel(learner.model, loss_of, run.ranks, run.recipe.distributed, run.device)
        self.model: nn.Module = self.parallel.model
        self.optimisation = Optimisation(self.model, self.recipe.optim, run.ranks, ema=self.recipe.ema)
        self.teacher_id = NO_TEACHER if teacher is None else teacher.id
        self.step = 0
        self._publish_at = publish_steps(self.recipe)
        self.held_out: list[StudentBatch] = []
        self.publisher: Publisher | None = None
        self.curve: list[CurvePoint] = []
        self.rewinds = Rewinds("student", self.recipe)
        self._is_new, self._is_ready = True, False
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._waited_before = 0.0

    def _compile(self) -> None:
        if self.run.ranks.size > 1 and self.run.recipe.distributed == "fsdp":
            raise TrainerError(
                "student.compile=true with distributed='fsdp', whose layers are gathered as they run; set distributed "
                "to ddp, or student.compile to false"
            )
        recipe = self.run.recipe
        varying = recipe.data.mask_documents or self.source.kind == "generate" or recipe.student.on_policy.share > 0
        compile_layers(self.learner.model, self.run.device, varying=varying)

    def load(self) -> None:
        """Resumes from what an earlier process saved, if it did.

        Raises:
            TrainerError: it learnt from another teacher or other text.
        """
        found = self.state.load(self.model, self.optimisation)
        if found is None:
            return
        step, saved = found
        check_steps("student.optim.steps", self.recipe.optim.steps, step)
        if saved["teacher"] != self.teacher_id.model_dump():
            raise TrainerError(
                f"this run learns from {saved['teacher']}, {self.teacher.where if self.teacher else 'nobody'} is "
                f"{self.teacher_id.model_dump()}; learn from that one, or start anew with --fresh or --run NAME"
            )
        if saved["source"] != self.source.identity():
            raise TrainerError(
                f"this run was begun with {saved['source']}, now it is {self.source.identity()}; "
                "resume with what it was, or start anew with --fresh or --run NAME"
            )
        self._restore(step, saved)
        self._seconds_before = float(saved["seconds"])
        # A state of an earlier version does not say.
        self._waited_before = float(saved.get("teacher_wait_seconds", 0.0))

    def _restore(self, step: int, saved: dict[str, Any]) -> None:
        self.step, self._is_new = step, not saved["curve"]
        self.curve = [CurvePoint.model_validate(point) for point in saved["curve"]]
        # The first process goes on with what all of them had counted, the others begin at 0.
        counts = saved["progress"]
        if not self.run.ranks.is_main:
            counts = {part: dict.fromkeys(values, 0) for part, values in counts.items()}
        self.source.restore(counts)
        self.rewinds.restore(saved.get("rewinds"))

    def loop(self) -> None:
        """Steps, validates, saves and publishes until the recipe's last step.

        A step is saved before it is published: whoever serves a checkpoint can rely on the run having got that far,
        and a kill between the two costs nothing, because the resumed run begins by publishing that step. One that
        cannot be saved is not published; the next that can be is.

        Raises:
            Interrupted, TeacherLostError: after saving and publishing what is there.
            TrainerError: a loss, a gradient or a student that is to be published is not finite, or the last step could
                not be published.
            OSError: the state of the last step, or of an interruption, cannot be saved; what was saved before is kept.
        """
        run, recipe = self.run, self.recipe
        with StageProgress(
            run.progress_folder,
            self.learner.stage,
            recipe.optim.steps,
            run.status,
            first=self.step,
            console=run.console,
            more=run.sinks,
        ) as progress:
            try:
                # The first process validates; the others' teacher is not asked for that.
                self.held_out = self._together(self.source.held_out_batches if run.ranks.is_main else list)
                if run.ranks.is_main:
                    held_out_ids = [row.tolist() for batch in self.held_out for row in batch.tokens]
                    self.publisher = Publisher(run, self.learner.model, self.teacher_id, held_out_ids, progress)
                self._is_ready = True
                batches = self._batches()
                if self._is_new:
                    self._validate(progress)
                elif self.step in self._publish_at:
                    self._publish(progress)
                while self.step < recipe.optim.steps:
                    batch = to_device(self._together(batches.__next__), run.device)
                    if self.teacher is not None:
                        progress.teacher_waited(self.teacher.waiting.waited)
                        run.status.teacher_rows = self.source.progress().get("cache", {})
                    try:
                        values = self._take_step(batch) | self.source.figures()
                    except BrokenLossError as error:
                        self._go_back(error, progress)
                        batches = self._batches()
                        continue
                    num_tokens = (batch.of or len(batch.tokens)) * batch.tokens.shape[1]
                    progress.step(self.step, values, num_tokens, note=self.source.note())
                    if self.step % recipe.validate_every == 0 or self.step == recipe.optim.steps:
                        self._validate(progress)
                    is_due = self.step in self._publish_at
                    if is_due or self.step % recipe.save_every == 0:
                        is_saved = self._save()
                        if is_due or run.ranks.any(self._failure is not None):
                            self._publish(progress, is_saved=is_saved)
                counts = self._counts()
                if run.ranks.is_main:
                    self.source.restore(counts)
                if self._failure is not None:
                    raise TrainerError(
                        f"step {self.step} is saved and not published: {self._failure}. Make room or give access, "
                        "then run the same command: it publishes the step"
                    )
            except (Interrupted, TeacherLostError):
                self.state.save(self.step, self.model, self.optimisation, self._progress(), regular=False)
                # Without held-out batches nothing can be said of it; the resumed run publishes, if it is due.
                if self.step and self._is_ready:
                    self._publish(progress)
                raise

    def result(self) -> StudentResult:
        """What the run's table and its readers are told."""
        teacher: TeacherFigures | None = None
        if self.teacher is not None:
            teacher = TeacherFigures(
                **self.teacher_id.model_dump(),
                fingerprint=self.teacher.about.tokenizer_fingerprint,
                held_out_nll=teacher_nll(self.held_out),
            )
        unigram = unigram_ce(self.source.token_counts, self.held_out)
        checkpoints = published(self.run, self.learner.model)
        num_tokens, report = self.source.num_tokens(self.step), self.source.report()
        return StudentResult(
            steps=self.step,
            tokens=num_tokens,
            seconds=self._spent(),
            teacher_wait_seconds=self._waited() if self.teacher is not None else None,
            curve=self.curve,
            unigram_ce=unigram,
            held_out_tokens=sum(int(batch.valid.sum()) for batch in self.held_out),
            targets=self.source.kind,
            teacher=teacher,
            cache=report if isinstance(report, CacheFigures) else None,
            kept=report if isinstance(report, KeptFigures) else None,
            generated=report if isinstance(report, GeneratedFigures) else None,
            checkpoints=checkpoints,
            history=self.state.history.changes,
            skipped=self.rewinds.skipped,
        )

    def _take_step(self, batch: StudentBatch) -> dict[str, float]:
        losses = student_losses(self.run.recipe, self.parallel, self.learner.weights, batch, self.step)
        values = self.optimisation.step(self.step, losses)
        if not batch.on_policy:
            self.rewinds.check(self.step, values["loss"])
        self.step += 1
        return values

    def _batches(self) -> Iterator[StudentBatch]:
        with_rows = any(self.learner.weights.of_rows.values())
        steps = self.rewinds.data_steps(self.step, self.recipe.optim.steps)
        return self.source.training_batches(steps, self.learner.model, with_rows=with_rows)

    def _go_back(self, error: BrokenLossError, progress: StageProgress) -> None:
        """Goes back, as :meth:`Rewinds.go_back` does."""
        self.rewinds.go_back(error, self.step, self._last_regular, progress.say)
        self.run.status.count("rewinds")
        # A run that is killed now goes on with it, and not by finding out again.
        self.state.replace_progress(self.step, self._progress())

    def _last_regular(self) -> int | None:
        found = self.state.load(self.model, self.optimisation, regular=True)
        if found is None:
            return None
        self._restore(*found)
        return self.step

    def _together(self, get: Callable[[], T]) -> T:
        """What this process gets, where none was asked to stop or lost its teacher: else all end at this step."""
        got, trouble = None, None
        try:
            if self.run.stop():
                raise Interrupted
            got = get()
        except (Interrupted, TeacherLostError) as error:
            trouble = error
        stopped, lost = isinstance(trouble, Interrupted), isinstance(trouble, TeacherLostError)
        others = self.run.ranks.sum(torch.tensor([int(stopped), int(lost)]))
        if trouble is None and not others.any():
            return cast(T, got)
        raise trouble or (TeacherLostError("another process lost its teacher") if others[1] else Interrupted)

    def _validate(self, progress: StageProgress) -> None:
        """Measures on held-out data and adds to the curve."""
        with self.parallel.shown(self.optimisation.average):
            if self.run.ranks.is_main:
                self.curve.append(self._measured(progress, with_parts=self.step in self._publish_at))

    def _measured(self, progress: StageProgress, *, with_parts: bool) -> CurvePoint:
        """Figures of the current step; what the parts are worth takes longer than the rest, and is for publishing."""
        figures = evaluate_student(self.learner.model, self.held_out, self.seed, self.run.device)
        if with_parts:
            figures |= evaluate_parts(self.learner.model, self.held_out, self.seed)
        self.learner.model.train()
        progress.validation(self.step, figures)
        return CurvePoint(step=self.step, **figures)

    def _publish(self, progress: StageProgress, *, is_saved: bool = True) -> None:
        """Publishes the current step with figures of this very step; one that is published already is kept.

        What is measured for publishing alone stays out of the curve, which must be the same whether the run was
        interrupted, and so published more, or not.
        """
        with self.parallel.shown(self.optimisation.average):
            if self.publisher is None or self.publisher.is_published(self.step):
                return
            if not is_saved:
                self.publisher.failure = f"step {self.step} is not saved"
                return
            last = self.curve[-1]
            is_measured = last.step == self.step and last.has_worth
            self.publisher.publish(last if is_measured else self._measured(progress, with_parts=True))
            self.learner.model.train()

    @property
    def _failure(self) -> str | None:
        return None if self.publisher is None else self.publisher.failure

    def _save(self) -> bool:
        is_last = self.step == self.recipe.optim.steps
        if self.state.try_save(self.step, self.model, self.optimisation, self._progress(), is_last=is_last):
            return True
        self.run.status.count("failed_saves")
        return False

    def _progress(self) -> dict[str, Any]:
        return {
            "curve": [point.model_dump(exclude_none=True) for point in self.curve],
            "seconds": self._spent(),
            "teacher_wait_seconds": self._waited(),
            "teacher": self.teacher_id.model_dump(),
            "source": self.source.identity(),
            "progress": self._counts(),
            "rewinds": self.rewinds.progress(),
        }

    def _counts(self) -> dict[str, dict[str, int]]:
        """What the sources of all processes have counted."""
        return {part: self.run.ranks.sum_counts(counts) for part, counts in self.source.progress().items()}

    def _waited(self) -> float:
        return round(self._waited_before + (self.teacher.waiting.waited if self.teacher is not None else 0.0), 2)

    def _spent(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 2)
