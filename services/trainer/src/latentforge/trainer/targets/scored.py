"""Targets of kind ``score``: the data's sequences, with the rows that the teacher gives for them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import islice

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_hash import is_chosen, sequence_hash
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import CacheFigures, KeptFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.batches import StepTexts, held_out_texts_batch, step_texts, training_batch
from latentforge.trainer.targets.on_policy import OnPolicyText
from latentforge.trainer.targets.text import TextTargets
from latentforge.trainer.teacher.failures import Failures
from latentforge.trainer.teacher.rows import Answer, CacheCount, RowSource


@dataclass(frozen=True)
class _AskedBatch:
    """The sequences of a step's texts, which of the texts the teacher is asked about, and what it answers."""

    indices: Sequence[int]
    chosen: Sequence[bool]
    answers: Future[list[Answer]]


class ScoredTargets(TextTargets):
    """The data's sequences with the teacher's rows; it is asked about each as it is packed, some batches ahead.

    Args:
        run: the run.
        rows: where rows come from.
        train, held_out: the data.
        cache_stats: asked for the bytes that the gateway's cache holds and the seconds that it has saved.
    """

    kind: TargetKind = "score"

    def __init__(
        self,
        run: RunContext,
        rows: RowSource,
        train: PackedData,
        held_out: PackedData,
        cache_stats: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ) -> None:
        super().__init__(run, train, held_out)
        self._rows, self._cache_stats = rows, cache_stats
        self._failures = Failures(run.recipe.teacher)
        self._on_policy = OnPolicyText(run, train, rows, self._failures)

    def held_out_batches(self) -> list[StudentBatch]:
        sequences = self._held_out_texts(self._run.recipe.student.validation_sequences)
        answers = iter(self._rows.take(self._rows.ask([text for texts in sequences for text in texts])))
        batches = []
        for i, texts in enumerate(sequences):
            rows = []
            for answer in islice(answers, len(texts)):
                if not isinstance(answer, SparseRows):
                    self._failures.say(f"held-out sequence {i}", answer)
                    answer = SparseRows.none(self._run.recipe.teacher.top_k)
                rows.append(answer)
            batches.append(held_out_texts_batch(self._run, texts, rows))
        if not any(batch.kd is not None and batch.kd.has_row.any() for batch in batches):
            raise TrainerError(
                f"there are no teacher's rows for any of the {len(batches)} held-out sequences, so nothing can be "
                "compared with the teacher; look at the gateway's log, or give other held-out data with --held-out"
            )
        return batches

    def training_batches(
        self, steps: Sequence[int], model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> Iterator[StudentBatch]:
        run, train, on_policy = self._run, self._train, self._on_policy
        # Rows depend on the step alone, never on the student, so they can be asked for while it computes. What it
        # writes itself cannot: it is known at its own step, and takes no place among what was asked ahead.
        ahead = (s for s in steps if with_rows and not on_policy.is_due(s))
        asked: deque[_AskedBatch] = deque()

        def ask(num_batches: int) -> None:
            asked.extend(self._ask(step_texts(run, train, s)) for s in islice(ahead, num_batches))

        def batches() -> Iterator[StudentBatch]:
            for s in steps:
                if on_policy.is_due(s):
                    yield on_policy.batch(s, model)
                    continue
                rows = None
                if with_rows:
                    # Steps take their rows in the order in which they were asked for: the oldest are this step's.
                    rows = self._take(asked.popleft())
                    ask(1)
                yield training_batch(run, train, s, rows)

        # Now, not when the first batch is taken: the teacher scores while the student is validated.
        ask(run.settings.trainer_prefetch_batches)
        return batches()

    def num_tokens(self, steps: int) -> int:
        num_text = sum(not self._on_policy.is_due(step) for step in range(steps))
        return super().num_tokens(num_text) + self._on_policy.num_tokens(steps)

    def progress(self) -> dict[str, dict[str, int]]:
        return {"cache": asdict(self._rows.cache), "failures": self._failures.progress()}

    def restore(self, progress: dict[str, dict[str, int]]) -> None:
        self._rows.cache = CacheCount(**progress["cache"])
        # Runs that were begun before failures were counted had none.
        self._failures.restore(progress.get("failures", {}))

    def note(self) -> str:
        failed = self._failures.count.failed
        return f"cache {self._rows.cache.hits}/{self._rows.cache.sequences}" + (f", {failed} failed" if failed else "")

    def figures(self) -> dict[str, float]:
        return self._failures.figures()

    def report(self) -> CacheFigures | KeptFigures:
        cache, (num_bytes, saved_seconds) = self._rows.cache, self._cache_stats()
        return CacheFigures(
            hits=cache.hits,
            misses=cache.sequences - cache.hits,
            rows=cache.rows,
            rows_from_cache=cache.rows_from_cache,
            failed=self._failures.count.failed,
            bytes=num_bytes,
            saved_seconds=round(saved_seconds, 2),
        )

    def _ask(self, step: StepTexts) -> _AskedBatch:
        share = self._run.recipe.teacher.share
        chosen = [share == 1.0 or is_chosen(sequence_hash(self._train.sequence(i)), share) for i in step.indices]
        wanted = [text for text, c in zip(step.texts, chosen, strict=True) if c]
        return _AskedBatch(step.indices, chosen, self._rows.ask(wanted))

    def _take(self, asked: _AskedBatch) -> list[SparseRows]:
        """Rows of every text of a step, a block of none where the teacher was not asked or failed."""
        names = [f"sequence {i} of {self._train.folder}" for i, c in zip(asked.indices, asked.chosen, strict=True) if c]
        rows = iter(self._failures.rows_of(self._rows.take(asked.answers), names))
        none = SparseRows.none(self._run.recipe.teacher.top_k)
        return [next(rows) if chosen else none for chosen in asked.chosen]
