"""Which targets a run has: what its recipe asks for and its teacher can give."""

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import TargetKind
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.base import TargetSource
from latentforge.trainer.targets.generated import GeneratedTargets
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.teacher.connection import TeacherLink


def meet_teacher(run: RunContext, link: TeacherLink) -> tuple[pb.GetTeacherResponse, TargetKind]:
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
    kind: TargetKind = wanted if wanted != "auto" else "score" if answer.can_score else "generate"
    if kind == "generate" and run.recipe.student.on_policy.share:
        raise TrainerError(
            f"{who} cannot score, but student.on_policy.share={run.recipe.student.on_policy.share} wants its rows on "
            "what the student writes; set it to 0, or choose a teacher that scores"
        )
    if answer.HasField("bos_id") and run.tokenizer.bos_id is None:
        run.console.print(
            f"warning: {who} begins every sequence with its bos (id {answer.bos_id}), and the data's sequences do not: "
            "its rows may be nonsense; set data.bos to true",
            soft_wrap=True,
        )
    return answer, kind


def target_source(
    run: RunContext,
    link: TeacherLink,
    train: PackedData,
    held_out: PackedData,
    answer: pb.GetTeacherResponse,
    kind: TargetKind,
    *,
    fresh: bool = False,
) -> TargetSource:
    """The source of a kind; ``fresh`` begins another collection where the old one does not fit."""
    if kind == "score":
        return ScoredTargets(run, link, train, held_out)
    run.console.print(f"the student learns from text that {answer.model} writes ({answer.backend})", highlight=False)
    return GeneratedTargets(run, link, train, held_out, answer, fresh=fresh)
