"""Targets of kind ``score``: the data's sequences, with the rows that the teacher gives for them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.trainer.results import CacheFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.batches import held_out_batch, held_out_sequences, training_batch, training_sequences
from latentforge.trainer.targets.on_policy import OwnText
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.rows import CacheCount, TeacherRows


class ScoredTargets:
    """The data's sequences; the teacher is asked about each as it is packed, some batches ahead."""

    kind: TargetKind = "score"

    def __init__(self, run: RunContext, link: TeacherLink, train: PackedData, held_out: PackedData) -> None:
        settings, recipe = run.settings, run.recipe
        self._run, self._train = run, train
        self._check = held_out_sequences(held_out, recipe.student.validation_sequences)
        self._rows = TeacherRows(
            link,
            recipe.teacher.top_k,
            dtype=recipe.teacher.logprob_dtype,
            ahead=settings.prefetch_batches,
            in_flight=settings.prefetch_in_flight,
        )
        self._link = link
        self._own_text = OwnText(run, train, self._rows)
        self.token_counts = np.bincount(train.tokens, minlength=run.vocab_size)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.kind}

    def begin(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> tuple[list[StudentBatch], Iterator[StudentBatch]]:
        asked = self._rows.ask(self._check)
        run, own_text, steps = self._run, self._own_text, range(step, self._run.recipe.student.optim.steps)
        sequences = (training_sequences(run, self._train, s) for s in steps if not own_text.is_due(s))
        stream = self._rows.stream(sequences) if with_rows else None
        check = [held_out_batch(*pair) for pair in zip(self._check, self._rows.take(asked), strict=True)]
        return check, (
            own_text.batch(s, model)
            if own_text.is_due(s)
            else training_batch(run, self._train, s, next(stream) if stream else None)
            for s in steps
        )

    def num_tokens(self, steps: int) -> int:
        num_text = sum(not self._own_text.is_due(step) for step in range(steps))
        per_step = self._run.recipe.student.optim.batch_size * self._train.meta.sequence_length
        return num_text * per_step + self._own_text.num_tokens(steps)

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

    def close(self) -> None: ...
