"""Which targets a run has: what its recipe asks for and its teacher can give."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from latentforge.core.manifest import TeacherId
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.kept.continuations import KeptContinuations
from latentforge.trainer.kept.folder import KeptFolder
from latentforge.trainer.kept.rows import KeptRows
from latentforge.trainer.results import TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.run.sinks.live import write_status
from latentforge.trainer.run.waiting import Waiting
from latentforge.trainer.targets.base import TargetSource
from latentforge.trainer.targets.generated import GeneratedTargets, KeptGeneratedTargets
from latentforge.trainer.targets.kept import KeptTargets
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.targets.text import TextTargets
from latentforge.trainer.teacher.connection import TeacherLink, check_teacher
from latentforge.trainer.teacher.rows import TeacherRows


@dataclass(frozen=True)
class MetTeacher:
    """A teacher that the run can learn from.

    Attributes:
        link: to its gateway; None where its rows were kept.
        kept: those.
        where: its gateway's target, or the folder of its rows.
        waiting: for how long it has been waited for.
        about: what it said of itself.
        kind: of the targets that the run has from it.
    """

    link: TeacherLink | None
    kept: Sequence[KeptFolder]
    where: str
    waiting: Waiting
    about: pb.GetTeacherResponse
    kind: TargetKind

    @property
    def id(self) -> TeacherId:
        return TeacherId(backend=self.about.backend, model=self.about.model, revision=self.about.revision)


@contextmanager
def met_teacher(run: RunContext) -> Iterator[MetTeacher | None]:
    """Connects to the gateway and asks what the teacher is; None where the recipe wants to do without one.

    Raises:
        TrainerError: it does not fit this run, or can do neither, or not what the recipe asks for.
        TeacherLostError, Interrupted: while it was waited for.
    """
    if run.recipe.teacher.targets == "text":
        yield None
        return
    if run.recipe.teacher.targets_from:
        yield _kept_teacher(run)
        return
    with TeacherLink.of(run.settings, run.stop) as link:
        link.on_lost = partial(_note_wait, run)
        about = link.teacher(run.tokenizer.fingerprint, run.vocab_size, run.recipe.teacher.top_k)
        yield MetTeacher(link, (), link.target, link.waiting, about, target_kind(run, f"at {link.target}", about))


def _note_wait(run: RunContext, line: str | None) -> None:
    """Says in the status what is waited for, in its file too: while a run waits, nothing else writes it."""
    run.status.waiting_for = line
    write_status(run.progress_folder, run.status)


def _kept_teacher(run: RunContext) -> MetTeacher:
    """The teacher whose rows were kept.

    Raises:
        TrainerError: a folder is not whole or does not fit this run, or two are of different teachers.
    """
    recipe = run.recipe.teacher
    folders = [KeptFolder(folder) for folder in recipe.targets_from]
    first = folders[0]
    for folder in folders:
        manifest, place = folder.manifest, f"of {folder.folder}"
        about = manifest.teacher.as_answer(manifest.kind, manifest.top_k)
        check_teacher(about, place, run.tokenizer.fingerprint, run.vocab_size, recipe.top_k)
        if (manifest.kind, manifest.teacher) != (first.manifest.kind, first.manifest.teacher):
            raise TrainerError(
                f"{folder.folder} holds {manifest.kind} rows of {manifest.teacher}, {first.folder} "
                f"{first.manifest.kind} rows of {first.manifest.teacher}; give folders of one teacher and kind"
            )
        masked = run.recipe.data.mask_documents
        if manifest.kind == "score" and manifest.mask_documents != masked:
            raise TrainerError(
                f"{folder.folder} was made with data.mask_documents={_toml(manifest.mask_documents)}, this run has "
                f"data.mask_documents={_toml(masked)}: its rows know other documents before than the student does; set "
                f"it to {_toml(manifest.mask_documents)}, or score the data anew with --set "
                f"data.mask_documents={_toml(masked)}"
            )
        if (manifest.logprob_dtype, recipe.logprob_dtype) == ("float16", "float32"):
            raise TrainerError(
                f"{folder.folder} holds log-probabilities in float16, teacher.logprob_dtype='float32' asks for more; "
                "set it to float16, or score the data anew with --set teacher.logprob_dtype=float32"
            )
    about = first.manifest.teacher.as_answer(first.manifest.kind, first.manifest.top_k)
    kind = target_kind(run, f"of {first.folder}", about)
    where = ", ".join(str(folder.folder) for folder in folders)
    return MetTeacher(None, folders, where, Waiting(run.stop), about, kind)


def _toml(value: bool) -> str:
    return str(value).lower()


def target_kind(run: RunContext, place: str, about: pb.GetTeacherResponse) -> TargetKind:
    """The kind of targets that a run has of a teacher at ``place``; warns of one that begins sequences otherwise.

    Raises:
        TrainerError: it can do neither, or not what the recipe asks for.
    """
    who = f"the teacher {about.model} ({about.backend}) {place}"
    wanted, share = run.recipe.teacher.targets, run.recipe.student.on_policy.share
    if not about.can_score and not about.can_generate:
        raise TrainerError(f"{who} can neither score nor generate; give the gateway another TEACHER_BACKEND")
    if wanted == "score" and not about.can_score:
        raise TrainerError(
            f"{who} cannot score given text, only generate; set teacher.targets to generate (TARGETS=generate), "
            "or TEACHER_BACKEND of the gateway to embedded, transformers, vllm-local or vllm-remote, which score"
        )
    if wanted == "generate" and not about.can_generate:
        raise TrainerError(f"{who} cannot generate, only score; set teacher.targets to score or auto (TARGETS=score)")
    kind: TargetKind = wanted if wanted != "auto" else "score" if about.can_score else "generate"
    if kind == "generate" and (scored := run.recipe.teacher.share) < 1:
        raise TrainerError(
            f"{who} cannot score, but teacher.share={scored} says how much of the data is scored; set it to 1, or "
            "choose a teacher that scores"
        )
    if kind == "generate" and share:
        raise TrainerError(
            f"{who} cannot score, but student.on_policy.share={share} wants its rows on what the student writes; set "
            "it to 0, or choose a teacher that scores"
        )
    if about.HasField("bos_id") and run.tokenizer.bos_id is None:
        run.console.print(
            f"warning: {who} begins every sequence with its bos (id {about.bos_id}), and the data's sequences do not: "
            "its rows may be nonsense; set data.bos to true",
            soft_wrap=True,
        )
    return kind


def _link(teacher: MetTeacher) -> TeacherLink:
    assert teacher.link is not None
    return teacher.link


def _cache_stats(link: TeacherLink) -> tuple[int, float]:
    stats = link.cache_stats()
    return stats.bytes, stats.saved_seconds


@contextmanager
def target_source(
    run: RunContext, teacher: MetTeacher | None, train: PackedData, held_out: PackedData, *, fresh: bool = False
) -> Iterator[TargetSource]:
    """The source of the teacher's kind; ``fresh`` begins another collection where the old one does not fit."""
    if teacher is None:
        yield TextTargets(run, train, held_out)
    elif teacher.kept and teacher.kind == "generate":
        asked = run.recipe.teacher
        yield KeptGeneratedTargets(
            run, [KeptContinuations(folder, asked.top_k, asked.logprob_dtype) for folder in teacher.kept]
        )
    elif teacher.kept:
        asked = run.recipe.teacher
        with closing(KeptRows(teacher.kept, asked.top_k, asked.logprob_dtype, teacher.waiting)) as kept:
            yield KeptTargets(run, kept, train, held_out)
    elif teacher.kind == "score":
        link, settings, asked = _link(teacher), run.settings, run.recipe.teacher
        rows = TeacherRows(link, asked.top_k, asked.logprob_dtype, settings.trainer_prefetch_in_flight)
        yield ScoredTargets(run, rows, train, held_out, lambda: _cache_stats(link))
    else:
        about = teacher.about
        run.console.print(f"the student learns from text that {about.model} writes ({about.backend})", highlight=False)
        with closing(GeneratedTargets(run, _link(teacher), train, held_out, about, fresh=fresh)) as source:
            yield source
