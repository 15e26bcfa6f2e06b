"""What a run does about a loss that breaks down: not finite, or far above what it lately was.

It goes back to its last state of a regular interval, and past all data that it has learnt from since: what spoilt the
weights may stand before what broke the loss. All of it follows from that state, so that a run does the same whether it
was interrupted meanwhile or not.
"""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from latentforge.trainer.config.sections import AutoencoderRecipe, StudentRecipe
from latentforge.trainer.data.sequence_order import data_step, data_steps
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import SkippedData

# Losses that the median is of; with fewer nothing is a spike yet.
_WINDOW = 100


class BrokenLossError(TrainerError):
    """A step's loss or gradient cannot be learnt from."""


class Rewinds:
    """How often a stage has gone back, and what it skips.

    Args:
        stage: its part of the recipe, for messages.
        recipe: says what a spike is, and how often is too often.

    Attributes:
        skipped: data that nothing is learnt from, oldest first.
    """

    def __init__(self, stage: str, recipe: AutoencoderRecipe | StudentRecipe) -> None:
        self._stage, self._spike, self._most = stage, recipe.spike, recipe.max_rewinds
        self.skipped: list[SkippedData] = []
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Takes up what :meth:`progress` gave; a state of an earlier version has none."""
        saved = saved or {"skipped": [], "losses": []}
        self.skipped = [SkippedData.model_validate(entry) for entry in saved["skipped"]]
        self._losses = deque(saved["losses"], maxlen=_WINDOW)

    def progress(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"skipped": [entry.model_dump() for entry in self.skipped], "losses": list(self._losses)}

    def data_steps(self, first: int, last: int) -> Sequence[int]:
        """The data's steps that steps ``first`` to ``last`` - 1 learn from."""
        return data_steps(first, last, self._ranges)

    def check(self, step: int, loss: float) -> None:
        """Takes the loss of one step.

        Raises:
            BrokenLossError: it is a spike.
        """
        if self._spike is None:
            return
        if len(self._losses) == _WINDOW and loss > self._spike * (usual := median(self._losses)):
            raise BrokenLossError(
                f"step {step}: the loss is {loss:.4g}, more than {self._stage}.spike={self._spike:g} times its median "
                f"of {usual:.4g}; lower optim.lr, or look at the data"
            )
        self._losses.append(loss)

    def go_back(
        self,
        error: BrokenLossError,
        broken: int,
        restored: Callable[[], int | None],
        say: Callable[[str], object],
    ) -> None:
        """Goes back to the last state of a regular interval, and past the data since.

        Args:
            error: what was wrong at step ``broken``.
            broken: step of the training.
            restored: restores that state, this object included, and gives its step; None where there is none.
            say: is told.

        Raises:
            BrokenLossError: there is no such state, or it has gone back as often as it may.
        """
        # What the state knows is part of it.
        skipped = self.skipped
        if len(skipped) >= self._most or (to := restored()) is None:
            raise error
        self.skipped = list(skipped)
        first, last = (data_step(step, self._ranges) for step in (to, broken))
        entry = SkippedData(step=to, first=first, last=last, reason=str(error).partition(";")[0])
        self.skipped.append(entry)
        say(
            f"{entry.reason}: back to step {to}, and past {last - first + 1} batches "
            f"({len(self.skipped)} of at most {self._most} times)"
        )

    @property
    def _ranges(self) -> list[tuple[int, int]]:
        return [(entry.first, entry.last) for entry in self.skipped]
