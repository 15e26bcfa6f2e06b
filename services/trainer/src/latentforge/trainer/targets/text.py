"""Targets of kind ``text``: the data alone, without a teacher."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.trainer.results import CacheFigures, KeptFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.batches import held_out_indices, held_out_texts_batch, training_batch
from latentforge.trainer.targets.documents import document_texts


class TextTargets:
    """The data's sequences without rows, for a student without a teacher."""

    kind: TargetKind = "text"

    def __init__(self, run: RunContext, train: PackedData, held_out: PackedData) -> None:
        self._run, self._train, self._held_out = run, train, held_out

    def prepare(self) -> None: ...

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        return self._train.token_counts(self._run.vocab_size)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.kind}

    def held_out_batches(self) -> list[StudentBatch]:
        count = self._run.recipe.student.validation_sequences
        return [held_out_texts_batch(self._run, texts, None) for texts in self._held_out_texts(count)]

    def _held_out_texts(self, count: int) -> list[list[Tensor]]:
        """The texts of each held-out sequence that validations look at."""
        return [document_texts(self._run, self._held_out, i) for i in held_out_indices(self._held_out, count)]

    def training_batches(
        self, steps: Sequence[int], model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> Iterator[StudentBatch]:
        assert not with_rows
        return (training_batch(self._run, self._train, s, None) for s in steps)

    def num_tokens(self, steps: int) -> int:
        return steps * self._run.recipe.student.optim.batch_size * self._train.meta.sequence_length

    def progress(self) -> dict[str, dict[str, int]]:
        return {}

    def restore(self, progress: dict[str, dict[str, int]]) -> None: ...

    def note(self) -> str:
        return ""

    def figures(self) -> dict[str, float]:
        return {}

    def report(self) -> CacheFigures | KeptFigures | None:
        return None
