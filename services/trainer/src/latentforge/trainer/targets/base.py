"""What the student learns from: batches with the teacher's rows on them, or of the data alone.

``score``: the data's sequences, with the rows that the teacher gives for them. ``generate``: what the teacher writes
after prompts made of the data, with its rows for that. ``text``: the data alone, without any teacher.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.results import CacheFigures, GeneratedFigures, KeptFigures, TargetKind


class TargetSource(Protocol):
    """Batches as a function of the step, so that a resumed run sees what an uninterrupted one would have seen.

    Its methods are called in this order: ``prepare``, then ``restore`` where a run is resumed, then the batches.

    Attributes:
        kind: score, generate or text.
    """

    kind: TargetKind

    def prepare(self) -> None:
        """Does what has to be done before the first step; ``generate`` collects the teacher's text.

        Raises:
            TrainerError: what is there cannot be used.
            TeacherLostError, Interrupted: what had been done is kept.
        """

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """How often each token stands in what is learnt, int64 [V]."""

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""

    def held_out_batches(self) -> list[StudentBatch]:
        """What validations look at; with rows wherever there is a teacher.

        Raises:
            TeacherLostError, Interrupted: while the teacher was waited for.
        """

    def training_batches(
        self, steps: Sequence[int], model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> Iterator[StudentBatch]:
        """The batches of these steps of the data, in their order.

        Args:
            steps: of the data.
            model: what learns, for steps on what it writes itself.
            with_rows: whether the teacher's rows are wanted.

        Raises:
            TeacherLostError, Interrupted: while the teacher was waited for; the iterator raises them.
        """

    def num_tokens(self, steps: int) -> int:
        """Tokens that so many steps learn from; of on-policy text, at most."""

    def progress(self) -> dict[str, dict[str, int]]:
        """What this process has counted, for :meth:`restore`; an interrupted run saves the sum over all processes."""

    def restore(self, progress: dict[str, dict[str, int]]) -> None: ...

    def note(self) -> str:
        """A few words for the progress bar."""

    def figures(self) -> dict[str, float]:
        """What of it belongs to a step's metrics, by name."""

    def report(self) -> CacheFigures | KeptFigures | GeneratedFigures | None:
        """What the run's result says of it."""
