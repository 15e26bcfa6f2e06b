"""Targets of kind ``score``: the data's sequences, with the rows that the teacher gives for them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict
from itertools import islice
from typing import Any

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.results import CacheFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.batches import held_out_batch, held_out_sequences, training_batch, training_sequences
from latentforge.trainer.targets.on_policy import OnPolicyText
from latentforge.trainer.targets.text import TextTargets
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.rows import CacheCount, TeacherRows


class ScoredTargets(TextTargets):
    """The data's sequences with the teacher's rows; it is asked about each as it is packed, some batches ahead."""

    kind: TargetKind = "score"

    def __init__(self, run: RunContext, link: TeacherLink, train: PackedData, held_out: PackedData) -> None:
        super().__init__(run, train, held_out)
        settings, teacher = run.settings, run.recipe.teacher
        self._rows = TeacherRows(link, teacher.top_k, teacher.logprob_dtype, settings.trainer_prefetch_in_flight)
        self._link = link
        self._on_policy = OnPolicyText(run, train, self._rows)

    def held_out_batches(self) -> list[StudentBatch]:
        sequences = held_out_sequences(self._held_out, self._run.recipe.student.validation_sequences)
        rows = self._rows.take(self._rows.ask(sequences))
        return [held_out_batch(*pair) for pair in zip(sequences, rows, strict=True)]

    def training_batches(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> Iterator[StudentBatch]:
        run, train, on_policy = self._run, self._train, self._on_policy
        steps = range(step, run.recipe.student.optim.steps)
        # Rows depend on the step alone, never on the student, so they can be asked for while it computes. What it
        # writes itself cannot: it is known at its own step, and takes no place among what was asked ahead.
        ahead = (s for s in steps if with_rows and not on_policy.is_due(s))
        asked: deque[Future[list[SparseRows]]] = deque()

        def ask(num_batches: int) -> None:
            asked.extend(self._rows.ask(training_sequences(run, train, s)) for s in islice(ahead, num_batches))

        def batches() -> Iterator[StudentBatch]:
            for s in steps:
                if on_policy.is_due(s):
                    yield on_policy.batch(s, model)
                    continue
                rows = None
                if with_rows:
                    # Steps take their rows in the order in which they were asked for: the oldest are this step's.
                    rows = self._rows.take(asked.popleft())
                    ask(1)
                yield training_batch(run, train, s, rows)

        # Now, not when the first batch is taken: the teacher scores while the student is validated.
        ask(run.settings.trainer_prefetch_batches)
        return batches()

    def num_tokens(self, steps: int) -> int:
        num_text = sum(not self._on_policy.is_due(step) for step in range(steps))
        return super().num_tokens(num_text) + self._on_policy.num_tokens(steps)

    def progress(self) -> dict[str, Any]:
        return {"cache": asdict(self._rows.cache)}

    def restore(self, progress: dict[str, Any]) -> None:
        self._rows.cache = CacheCount(**progress["cache"])

    def note(self) -> str:
        return f"cache {self._rows.cache.hits}/{self._rows.cache.sequences}"

    def report(self) -> CacheFigures:
        cache, stats = self._rows.cache, self._link.cache_stats()
        return CacheFigures(
            hits=cache.hits,
            misses=cache.sequences - cache.hits,
            rows=cache.rows,
            rows_from_cache=cache.rows_from_cache,
            bytes=stats.bytes,
            saved_seconds=round(stats.saved_seconds, 2),
        )
