"""What the student learns from: batches with the teacher's rows on them, or of the data alone.

``score``: the data's sequences, with the rows that the teacher gives for them. ``generate``: what the teacher writes
after prompts made of the data, with its rows for that. ``text``: the data alone, without any teacher.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.results import CacheFigures, GeneratedFigures, TargetKind


class TargetSource(Protocol):
    """Batches as a function of the step, so that a resumed run sees what an uninterrupted one would have seen.

    Attributes:
        kind: score, generate or text.
        token_counts: how often each token stands in what is learnt, int64 [V].
    """

    kind: TargetKind
    token_counts: NDArray[np.int64]

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""

    def begin(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> tuple[list[StudentBatch], Iterator[StudentBatch]]:
        """Held-out batches, always with rows, and the training batches from ``step`` on; ``model`` is what learns.

        Raises:
            TeacherLostError, Interrupted: while the teacher was waited for; the iterator too.
        """

    def num_tokens(self, steps: int) -> int:
        """Tokens that so many steps learn from; of the student's own text, at most."""

    def progress(self) -> dict[str, Any]:
        """What an interrupted run saves of it, for :meth:`restore`."""

    def restore(self, progress: dict[str, Any]) -> None: ...

    def note(self) -> str:
        """A few words for the progress bar."""

    def report(self) -> CacheFigures | GeneratedFigures | None:
        """What the run's result says of it."""

    def close(self) -> None: ...
