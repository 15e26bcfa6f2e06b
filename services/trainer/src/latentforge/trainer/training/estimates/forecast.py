"""How long a run's student will take, foretold before its first step from how fast the autoencoder is."""

from latentforge.trainer.config.recipe import Recipe
from latentforge.trainer.training.estimates.dry_run import operations_of
from latentforge.trainer.training.models import TokenIds

# Counting operations takes seconds: nobody needs to know for a stage that is over as soon.
WORTH_SECONDS = 60.0
# The first steps are slower than the others.
_MEASURED_STEPS = 20


class StudentForecast:
    """Says how long the student will take: as its steps' operations are to the autoencoder's, so are their times.

    Teacher, validations and publishing are left out; that matrices of other sizes run at another speed is, too. The
    student itself measures, once it has begun.
    """

    def __init__(self, recipe: Recipe, ids: TokenIds) -> None:
        self._recipe, self._ids = recipe, ids
        # Seconds of the student for each of an autoencoder's step.
        self._ratio: float | None = None

    def __call__(self, steps: int, step_seconds: float, left: float) -> float | None:
        """Seconds of the student; None where it is not known yet.

        Args:
            steps: of the autoencoder, that this process has made.
            step_seconds: of one of them.
            left: seconds that the autoencoder will take yet.
        """
        if self._ratio is None:
            if steps < _MEASURED_STEPS or left < WORTH_SECONDS:
                return None
            student, autoencoder = (
                operations_of(self._recipe, stage, self._ids) for stage in ("student", "autoencoder")
            )
            self._ratio = self._recipe.student.optim.steps * student / autoencoder
        return self._ratio * step_seconds
