"""What the student learns from: batches with the teacher's rows on them, or of the data alone.

``score``: the data's sequences, with the rows that the teacher gives for them. ``generate``: what the teacher writes
after prompts made of the data, with its rows for that. ``text``: the data alone, without any teacher.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.token_level import TokenLevelModel
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.trainer.batches import held_out_batch, held_out_sequences, training_batch, training_sequences
from latentforge.trainer.collect import collect, identity, open_store
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.examples import Examples
from latentforge.trainer.own_text import OwnText
from latentforge.trainer.packing import PackedData
from latentforge.trainer.prompts import Prompt, Split, choose_prompts
from latentforge.trainer.run_context import RunContext
from latentforge.trainer.teacher_link import TeacherLink
from latentforge.trainer.teacher_rows import CacheCount, TeacherRows

Kind = Literal["score", "generate", "text"]


class TargetSource(Protocol):
    """Batches as a function of the step, so that a resumed run sees what an uninterrupted one would have seen.

    Attributes:
        kind: score, generate or text.
        token_counts: how often each token stands in what is learnt, int64 [V].
    """

    kind: Kind
    token_counts: NDArray[np.int64]

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""

    def begin(
        self, step: int, model: LatentModel | TokenLevelModel, *, with_rows: bool
    ) -> tuple[list[StudentBatch], Iterator[StudentBatch]]:
        """Held-out batches, always with rows, and the training batches from ``step`` on; ``model`` is what learns.

        Raises:
            TeacherLostError, Interrupted: while the teacher was waited for; the iterator too.
        """

    def num_tokens(self, steps: int) -> int:
        """Tokens that so many steps learn from; of the student's own text, at most."""

    def progress(self) -> dict[str, Any]:
        """What an interrupted run saves of it, for :meth:`restore`."""

    def restore(self, progress: dict[str, Any]) -> None: ...

    def note(self) -> str:
        """A few words for the progress bar."""

    def report(self) -> dict[str, Any]:
        """What the run's result says of it."""

    def close(self) -> None: ...


def meet_teacher(run: RunContext, link: TeacherLink) -> tuple[pb.GetTeacherResponse, Kind]:
    """Asks what the teacher is and which source it can be, where one is wanted.

    Raises:
        TrainerError: it does not fit this run, or can do neither, or not what the recipe asks for.
    """
    answer = link.teacher(run.tokenizer.fingerprint, run.vocab_size, run.recipe.teacher.top_k)
    who = f"the teacher {answer.model} ({answer.backend}) at {link.target}"
    wanted = run.recipe.teacher.targets
    if not answer.can_score and not answer.can_generate:
        raise TrainerError(f"{who} can neither score nor generate; give the gateway another TEACHER_BACKEND")
    if wanted == "score" and not answer.can_score:
        raise TrainerError(
            f"{who} cannot score given text, only generate; set teacher.targets to generate (TARGETS=generate), "
            "or TEACHER_BACKEND of the gateway to embedded, transformers, vllm-local or vllm-remote, which score"
        )
    if wanted == "generate" and not answer.can_generate:
        raise TrainerError(f"{who} cannot generate, only score; set teacher.targets to score or auto (TARGETS=score)")
    kind: Kind = wanted if wanted != "auto" else "score" if answer.can_score else "generate"
    if kind == "generate" and run.recipe.student.on_policy.share:
        raise TrainerError(
            f"{who} cannot score, but student.on_policy.share={run.recipe.student.on_policy.share} wants its rows on "
            "what the student writes; set it to 0, or choose a teacher that scores"
        )
    return answer, kind


class ScoredTargets:
    """The data's sequences; the teacher is asked about each as it is packed, some batches ahead."""

    kind: Kind = "score"

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

    def report(self) -> dict[str, Any]:
        cache, stats = self._rows.cache, self._link.cache_stats()
        return {
            "cache": {
                "hits": cache.hits,
                "misses": cache.sequences - cache.hits,
                "rows": cache.rows,
                "rows_from_cache": cache.rows_from_cache,
                "bytes": stats.bytes,
                "saved_seconds": round(stats.saved_seconds, 2),
            }
        }

    def close(self) -> None: ...


class TextTargets:
    """The data's sequences without rows: a student of nobody."""

    kind: Kind = "text"

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

    def report(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


class GeneratedTargets:
    """The teacher's own text in runs/<run>/generated/, which is collected first where it is not there yet.

    Raises:
        TrainerError: nothing can be asked, too much of what came cannot be used, or the folder holds what another
            teacher or other settings made.
        TeacherLostError, Interrupted: while collecting; the same command goes on.
    """

    kind: Kind = "generate"

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

    def report(self) -> dict[str, Any]:
        return {
            "generated": {
                "prompts": self._num_prompts,
                "continuations": self._store.num_usable(),
                "dropped": len(self._store.dropped()),
                "tokens": self._store.num_tokens(),
                "held_out_continuations": len(self._held_out),
                "continuations_per_step": self._train.per_batch,
            }
        }

    def close(self) -> None:
        self._store.close()


def target_source(
    run: RunContext,
    link: TeacherLink,
    train: PackedData,
    held_out: PackedData,
    answer: pb.GetTeacherResponse,
    kind: Kind,
    *,
    fresh: bool = False,
) -> TargetSource:
    """The source of a kind; ``fresh`` begins another collection where the old one does not fit."""
    if kind == "score":
        return ScoredTargets(run, link, train, held_out)
    run.console.print(f"the student learns from text that {answer.model} writes ({answer.backend})", highlight=False)
    return GeneratedTargets(run, link, train, held_out, answer, fresh=fresh)
