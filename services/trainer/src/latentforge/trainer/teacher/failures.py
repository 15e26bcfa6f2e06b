"""Sequences that the teacher fails on for good: trained without its rows, counted, and too many of them an error."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.trainer.config.sections import TeacherRecipe
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.teacher.rows import Answer

logger = logging.getLogger(__name__)

# So many sequences are asked about before a share means something.
_JUDGED_FROM = 20
# Of different sequences; a teacher that fails on everything would fill the log.
_MOST_LINES = 100


@dataclass
class FailureCount:
    """Sequences whose rows steps have taken so far, and how many of them have none."""

    asked: int = 0
    failed: int = 0


class Failures:
    """Counts what the teacher failed on, says it once, and ends what has too much of it.

    Args:
        recipe: says how large a share of the sequences may fail, and how wide rows are.

    Attributes:
        count: so far; a resumed run puts that of the earlier process there.
    """

    def __init__(self, recipe: TeacherRecipe) -> None:
        self._max_share, self._top_k = recipe.max_failed_share, recipe.top_k
        self._said: set[str] = set()
        self.count = FailureCount()

    def rows_of(self, answers: Sequence[Answer], names: Sequence[str]) -> list[SparseRows]:
        """The rows among answers, and a block of none for what failed, which is counted under its name.

        Raises:
            TrainerError: too large a share of all sequences so far has none.
        """
        count = self.count
        count.asked += len(answers)
        rows, last = [], ""
        for answer, name in zip(answers, names, strict=True):
            if isinstance(answer, SparseRows):
                rows.append(answer)
                continue
            count.failed += 1
            self.say(name, answer)
            last = f"{name}: {answer}"
            rows.append(SparseRows.none(self._top_k))
        if last and count.asked >= _JUDGED_FROM and count.failed > self._max_share * count.asked:
            raise TrainerError(
                f"the teacher fails on {count.failed} of {count.asked} sequences, more than "
                f"teacher.max_failed_share={self._max_share:g} allows; the last is {last}. Look at the gateway's log, "
                "or allow more with --set teacher.max_failed_share=…"
            )
        return rows

    def say(self, name: str, error: TeacherError) -> None:
        """Logs a failure, once for each name."""
        if name not in self._said and len(self._said) < _MOST_LINES:
            self._said.add(name)
            logger.warning("%s has no rows of the teacher: %s", name, error)

    def figures(self) -> dict[str, float]:
        """For metrics and status; empty while nothing failed."""
        return {"without_rows": float(self.count.failed)} if self.count.failed else {}

    def progress(self) -> dict[str, int]:
        return asdict(self.count)

    def restore(self, progress: dict[str, int]) -> None:
        self.count = FailureCount(**progress)
