"""Targets of kind ``generate``: what the teacher writes after prompts made of the data, with its rows for that."""

from collections.abc import Iterator
from typing import Any

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.packed import PackedData
from latentforge.trainer.data.prompts import Prompt, Split, choose_prompts
from latentforge.trainer.results import GeneratedFigures, TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.continuation_batches import Examples
from latentforge.trainer.teacher.collect import collect, identity, open_store
from latentforge.trainer.teacher.connection import TeacherLink


class GeneratedTargets:
    """The teacher's own text in runs/<run>/generated/, which is collected first where it is not there yet.

    Raises:
        TrainerError: nothing can be asked, too much of what came cannot be used, or the folder holds what another
            teacher or other settings made.
        TeacherLostError, Interrupted: while collecting; the same command goes on.
    """

    kind: TargetKind = "generate"

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
        recipe, tokenizer, asked = run.recipe, run.tokenizer, run.recipe.teacher.generate
        # An end-of-text and the pads of any phase are in a sequence too.
        limit = min(recipe.data.sequence_length - recipe.chunk_size, answer.max_sequence_length or 2**31)
        prompts: list[Prompt] = []
        numbers: dict[Split, range] = {}
        splits: list[tuple[Split, PackedData]] = [("held-out", held_out), ("train", train)]
        for split, data in splits:
            chosen = choose_prompts(data, split, recipe, tokenizer, limit, prompts)
            numbers[split] = range(len(prompts), len(prompts) + len(chosen.prompts))
            prompts += chosen.prompts
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
        about = identity(recipe.teacher, prompts, answer)
        self._store = open_store(run.folder / "generated", recipe.teacher, about, len(prompts), fresh=fresh)
        try:
            collect(run, link, self._store, prompts)
            ids = tokenizer.pad_id, tokenizer.eos_id
            self._train = Examples(self._store, numbers["train"], recipe, *ids)
            self._held_out = Examples(self._store, numbers["held-out"], recipe, *ids)
            self._digest = self._store.digest(range(len(prompts)))
        except BaseException:
            self._store.close()
            raise
        self._num_prompts, self._steps = len(prompts), recipe.student.optim.steps
        self.token_counts = self._train.token_counts(run.vocab_size)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.kind, "generated_sha256": self._digest}

    def begin(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> tuple[list[StudentBatch], Iterator[StudentBatch]]:
        return self._held_out.batches(), (self._train.training_batch(s) for s in range(step, self._steps))

    def num_tokens(self, steps: int) -> int:
        return self._train.num_tokens(steps)

    def progress(self) -> dict[str, Any]:
        return {}

    def restore(self, progress: dict[str, Any]) -> None: ...

    def note(self) -> str:
        return f"of {len(self._train)} continuations"

    def report(self) -> GeneratedFigures:
        return GeneratedFigures(
            prompts=self._num_prompts,
            continuations=self._store.num_usable(),
            dropped=len(self._store.dropped()),
            tokens=self._store.num_tokens(),
            held_out_continuations=len(self._held_out),
            continuations_per_step=self._train.per_batch,
        )

    def close(self) -> None:
        self._store.close()
