"""Targets of kind ``text``: the data alone, without a teacher."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.trainer.results import TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.batches import held_out_batch, held_out_sequences, training_batch


class TextTargets:
    """The data's sequences without rows: a student of nobody."""

    kind: TargetKind = "text"

    def __init__(self, run: RunContext, train: PackedData, held_out: PackedData) -> None:
        self._run, self._train = run, train
        self._check = held_out_sequences(held_out, run.recipe.student.validation_sequences)
        self.token_counts = np.bincount(train.tokens, minlength=run.vocab_size)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.kind}

    def begin(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> tuple[list[StudentBatch], Iterator[StudentBatch]]:
        assert not with_rows
        steps = range(step, self._run.recipe.student.optim.steps)
        check = [held_out_batch(sequence, None) for sequence in self._check]
        return check, (training_batch(self._run, self._train, s, None) for s in steps)

    def num_tokens(self, steps: int) -> int:
        return steps * self._run.recipe.student.optim.batch_size * self._train.meta.sequence_length

    def progress(self) -> dict[str, Any]:
        return {}

    def restore(self, progress: dict[str, Any]) -> None: ...

    def note(self) -> str:
        return ""

    def report(self) -> None:
        return None

    def close(self) -> None: ...
