"""Targets of kind ``generate``: what the teacher writes after prompts made of the data, with its rows for that."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.packed import PackedData
from latentforge.trainer.data.prompts import Prompt, Split, choose_prompts
from latentforge.trainer.kept.continuations import KeptContinuations, export_continuations
from latentforge.trainer.kept.manifest import KeptBy, KeptManifest, KeptSplit, KeptTeacher
from latentforge.trainer.results import GeneratedFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.continuation_batches import ContinuationStore, Examples
from latentforge.trainer.targets.joined import JoinedContinuations, joined_numbers
from latentforge.trainer.teacher.collect import collect, identity, open_store
from latentforge.trainer.teacher.connection import TeacherLink


class ContinuationTargets:
    """What a teacher has written, as the batches of a run.

    Args:
        run: the run.
        store: the continuations.
        numbers: of each split's prompts.
    """

    kind: TargetKind = "generate"

    def __init__(self, run: RunContext, store: ContinuationStore, numbers: Mapping[Split, Sequence[int]]) -> None:
        self._run, self._store, self._numbers = run, store, numbers

    def prepare(self) -> None:
        """Lays the continuations out; after this everything else may be called."""
        self._train, self._held_out = self._examples("train"), self._examples("held-out")
        self._digest = self._store.digest([*self._numbers["held-out"], *self._numbers["train"]])

    def _examples(self, split: Split) -> Examples:
        tokenizer = self._run.tokenizer
        return Examples(self._store, self._numbers[split], self._run.recipe, tokenizer.pad_id, tokenizer.eos_id)

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        return self._train.token_counts(self._run.vocab_size)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.kind, "generated_sha256": self._digest}

    def held_out_batches(self) -> list[StudentBatch]:
        return self._held_out.batches()

    def training_batches(
        self, steps: Sequence[int], model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> Iterator[StudentBatch]:
        share = self._run.ranks.share(self._train.per_batch)
        return (self._train.training_batch(s).rows(share) for s in steps)

    def num_tokens(self, steps: int) -> int:
        return self._train.num_tokens(steps)

    def progress(self) -> dict[str, dict[str, int]]:
        return {}

    def restore(self, progress: dict[str, dict[str, int]]) -> None: ...

    def note(self) -> str:
        return f"of {len(self._train)} continuations"

    def figures(self) -> dict[str, float]:
        return {}

    def report(self) -> GeneratedFigures:
        return GeneratedFigures(
            prompts=len(self._numbers["train"]) + len(self._numbers["held-out"]),
            continuations=self._store.num_usable,
            dropped=self._store.num_dropped,
            tokens=self._store.num_tokens(),
            held_out_continuations=len(self._held_out),
            continuations_per_step=self._train.per_batch,
        )


class GeneratedTargets(ContinuationTargets):
    """What the teacher has written, in runs/<run>/generated/, which :meth:`prepare` collects where it is missing.

    Args:
        run: the run.
        link: to the gateway.
        train, held_out: the data that prompts are made of.
        answer: what the teacher said of itself.
        fresh: begins another collection where the old one was made by another teacher or with other settings.

    Raises:
        TrainerError: no prompt fits, or the folder holds what another teacher or other settings made.
    """

    def __init__(
        self,
        run: RunContext,
        link: TeacherLink,
        train: PackedData,
        held_out: PackedData,
        answer: pb.GetTeacherResponse,
        *,
        fresh: bool = False,
    ) -> None:
        self._link = link
        recipe, asked = run.recipe, run.recipe.teacher.generate
        # An end-of-text and the pads of any phase are in a sequence too.
        limit = min(recipe.data.sequence_length - recipe.chunk_size, answer.max_sequence_length or 2**31)
        self._prompts: list[Prompt] = []
        numbers: dict[Split, range] = {}
        splits: list[tuple[Split, PackedData]] = [("held-out", held_out), ("train", train)]
        for split, data in splits:
            chosen = choose_prompts(data, split, recipe, run.tokenizer, limit, self._prompts)
            first = len(self._prompts)
            numbers[split] = range(first, first + len(chosen.prompts))
            self._prompts += chosen.prompts
            run.console.print(
                f"{len(chosen.prompts)} of {chosen.num_wanted} {split} prompts; {chosen.num_passed_over} documents "
                "give none that fits",
                soft_wrap=True,
                highlight=False,
            )
        if answer.logprobs_mode == pb.LOGPROBS_MODE_PROCESSED and (asked.temperature, asked.top_p) != (1.0, 1.0):
            run.console.print(
                "warning: this teacher's rows are its distribution after temperature and top_p; the student will learn "
                "that one",
                soft_wrap=True,
            )
        about = identity(recipe.teacher, self._prompts, answer)
        self._collected = open_store(run.folder / "generated", recipe.teacher, about, len(self._prompts), fresh=fresh)
        super().__init__(run, self._collected, numbers)

    def prepare(self) -> None:
        """Asks for what is missing; after this everything else may be called."""
        collect(self._run, self._link, self._collected, self._prompts)
        super().prepare()

    def export(self, out: Path, teacher: KeptTeacher, made: KeptBy) -> KeptManifest:
        """Keeps what was collected, see :func:`export_continuations`."""
        prompts: dict[KeptSplit, Sequence[int]] = {
            "train": self._numbers["train"],
            "validation": self._numbers["held-out"],
        }
        return export_continuations(self._collected, prompts, out, teacher, self._run.recipe.teacher, made)

    def close(self) -> None:
        self._collected.close()


class KeptGeneratedTargets(ContinuationTargets):
    """Continuations from folders of kept rows: of one, the same batches as of the run that collected them."""

    def __init__(self, run: RunContext, kept: Sequence[KeptContinuations]) -> None:
        store: ContinuationStore = kept[0] if len(kept) == 1 else JoinedContinuations(kept)
        splits: list[tuple[Split, KeptSplit]] = [("train", "train"), ("held-out", "validation")]
        # Of the first collection numbers are as they were.
        numbers = {ours: joined_numbers([k.prompts(kept_as) for k in kept]) for ours, kept_as in splits}
        super().__init__(run, store, numbers)
