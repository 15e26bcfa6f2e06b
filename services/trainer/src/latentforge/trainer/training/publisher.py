"""When a step is published: with figures and samples of this very step, and again later where the disk refuses."""

from collections.abc import Sequence

from safetensors import SafetensorError

from latentforge.core.manifest import TeacherId
from latentforge.model.latent_model import LatentModel
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.results import CurvePoint
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.training.publish import golden_text, is_published, prune, publish
from latentforge.trainer.training.samples import Sampler


class Publisher:
    """Publishes a run's student.

    Args:
        run: the run.
        model: what learns; left in evaluation mode.
        teacher: whom it learns from.
        held_out: ids of the sequences that validations look at.
        progress: is told.

    Attributes:
        failure: why the newest step that was due is not published; None where it is.

    Raises:
        TrainerError: the held-out sequences have no text, or a prompt of the recipe does not fit.
    """

    def __init__(
        self,
        run: RunContext,
        model: LatentModel | TokenLevelModel,
        teacher: TeacherId,
        held_out: Sequence[Sequence[int]],
        progress: StageProgress,
    ) -> None:
        self._run, self._model, self._teacher, self._progress = run, model, teacher, progress
        self._text = golden_text(run.tokenizer, held_out, run.recipe.student.golden_tokens)
        self._sampler = Sampler(run, held_out, model.max_tokens)
        self.failure: str | None = None

    def is_published(self, step: int) -> bool:
        return is_published(self._run, self._model, step)

    def publish(self, point: CurvePoint) -> None:
        """Publishes the student as it is, after ``point.step`` steps; a disk that refuses is a warning.

        Args:
            point: its held-out figures.

        Raises:
            TrainerError: a figure, a weight or a logit is not finite.
        """
        say, keep = self._progress.say, self._run.recipe.student.keep_checkpoints
        figures = point.model_dump(exclude={"step"}, exclude_none=True)
        metrics = {f"held_out_{name}": value for name, value in figures.items()}
        samples = self._sampler.draw(self._model)
        try:
            place = publish(self._run, self._model, self._teacher, point.step, metrics, self._text, samples)
        except (OSError, SafetensorError) as error:
            # A disk that is full for an hour must not cost a run of weeks.
            self.failure = str(error)
            say(f"warning: step {point.step} cannot be published ({error}); the next save tries again")
            return
        self.failure = None
        self._progress.published(point.step, place, samples)
        try:
            if removed := prune(self._run, self._model):
                say(f"removed {', '.join(removed)}: keep_checkpoints={keep}")
        except OSError as error:
            say(f"warning: old checkpoints cannot be removed ({error}); the next publish tries again")
