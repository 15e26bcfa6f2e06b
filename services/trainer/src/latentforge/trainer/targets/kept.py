"""Targets of kind ``score`` without a gateway: the data's sequences, with rows that were kept."""

from typing import Any

from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_hash import is_chosen, sequence_hash
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.kept.rows import KeptRows
from latentforge.trainer.results import KeptFigures
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.documents import document_texts
from latentforge.trainer.targets.scored import ScoredTargets


class KeptTargets(ScoredTargets):
    """The data's sequences with kept rows where there are some: the same batches as from the gateway that gave them.

    Raises:
        TrainerError: the folders hold nothing of the training data, as where it was packed otherwise.
    """

    def __init__(self, run: RunContext, rows: KeptRows, train: PackedData, held_out: PackedData) -> None:
        super().__init__(run, rows, train, held_out)
        self._kept = rows
        self._require_some(train)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"kept_sha256": self._kept.digest()}

    def note(self) -> str:
        found = f"rows {self._rows.cache.hits}/{self._rows.cache.sequences}"
        return found + (f", {self._failures.count.failed} failed" if self._failures.count.failed else "")

    def report(self) -> KeptFigures:
        count = self._rows.cache
        return KeptFigures(
            sequences=count.sequences, found=count.hits, rows=count.rows, failed=self._failures.count.failed
        )

    def _require_some(self, train: PackedData) -> None:
        share = self._run.recipe.teacher.share
        num_chosen = num_found = 0
        lacking: int | None = None
        # One after another: data may be far larger than memory.
        for i in range(len(train)):
            ids = train.sequence(i)
            if share < 1.0 and not is_chosen(sequence_hash(ids), share):
                continue
            num_chosen += 1
            if all(text.numpy() in self._kept for text in document_texts(self._run, train, i)):
                num_found += 1
            elif lacking is None:
                lacking = i
        if num_found:
            if lacking is not None:
                self._run.console.print(
                    f"{num_found:,} of {num_chosen:,} training sequences have kept rows; the others, as number "
                    f"{lacking}, are trained without",
                    soft_wrap=True,
                    highlight=False,
                )
            return
        meta = train.meta
        raise TrainerError(
            f"{self._kept.describe()} none of the {len(train)} training sequences in {train.folder}, which is "
            f"packed from {meta.source} (sha256 {meta.source_sha256[:12]}…) in sequences of {meta.sequence_length} "
            f"with bos id {meta.bos_id}: give the data that was scored, packed in the same way, or score this with "
            "`trainer score`"
        )
