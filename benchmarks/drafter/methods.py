"""The ways to draft that are measured."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.drafter.engines import Method
from benchmarks.drafter.plan import DrafterPlan
from latentforge.core.manifest import MANIFEST
from latentforge.drafter.drafter import DraftsFrom
from tools import suffix_env

ALONE = Method("alone")
# The first student's drafter with one of its two sources: what is lost when the other is taken out.
SOURCES: Mapping[str, DraftsFrom] = {"student_only": "student", "lookups_only": "lookups"}
BASELINES = ("ngram", "suffix", *SOURCES)
# Texts that are drafted for at once by a student: as many as an engine runs.
_SLOTS = "32"


def fixed(plan: DrafterPlan) -> Method:
    """Drafts of chosen lengths, to time passes."""
    return _custom("fixed", plan, "benchmarks.drafter.fixed_drafter.FixedDrafter", {})


def ngram(plan: DrafterPlan) -> Method:
    """What followed the newest tokens where they stood before in the text: vLLM's own, as it is by itself."""
    return Method("ngram", {"method": "ngram", "num_speculative_tokens": plan.most_drafted})


def suffix(folder: Path) -> Method:
    """The same over all earlier texts, with lengths by how often (arXiv 2411.04975); vLLM's, by a package of its own.

    Args:
        folder: where that package is installed.
    """
    return Method("suffix", {"method": "suffix"}, paths=(folder,))


def lookups(plan: DrafterPlan) -> list[Method]:
    """The ways that need no model: ngram, and suffix where its package is installed."""
    return [ngram(plan), *([suffix(suffix_env.FOLDER)] if suffix_env.is_ready() else [])]


def student(
    name: str,
    folder: Path,
    plan: DrafterPlan,
    empty: Path,
    least_confidence: float | None = None,
    *,
    drafts_from: DraftsFrom = "both",
) -> Method:
    """The student of a checkpoint.

    Args:
        folder: of a checkpoint, of a run, or of runs.
        empty: a folder without checkpoints.
        least_confidence: where drafts end; 0 always drafts ``most_drafted`` tokens, None as many as pay.
        drafts_from: as LATENTFORGE_DRAFTS_FROM.

    Raises:
        ValueError: it holds none.
    """
    if (folder / MANIFEST).is_file():
        raise ValueError(f"--checkpoint {name}: {folder} is one checkpoint; give its run's folder, {folder.parent}")
    if any(folder.glob(f"*/{MANIFEST}")):
        env = {"LATENTFORGE_CHECKPOINTS": str(empty), "LATENTFORGE_FALLBACK_RUN": str(folder.absolute())}
    elif any(folder.glob(f"*/*/{MANIFEST}")):
        env = {"LATENTFORGE_CHECKPOINTS": str(folder.absolute())}
    else:
        raise ValueError(f"--checkpoint {name}: {folder} holds no checkpoint, no step-*/{MANIFEST}")
    if least_confidence is not None:
        env["LATENTFORGE_LEAST_CONFIDENCE"] = str(least_confidence)
    env["LATENTFORGE_DRAFTS_FROM"] = drafts_from
    return _custom(name, plan, "latentforge.vllm.StudentDrafter", {**env, "LATENTFORGE_DRAFTER_SLOTS": _SLOTS})


def _custom(name: str, plan: DrafterPlan, drafter: str, env: Mapping[str, str]) -> Method:
    speculative = {"method": "custom_class", "model": drafter, "num_speculative_tokens": plan.most_drafted}
    return Method(name, speculative, env)
