"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrafterPlan:
    """What every measurement is made of.

    Attributes:
        per_domain: prompts of each domain that all are continued, for identical, mean_accepted and speed_8.
        single_per_domain: those that are continued again one request at a time, for speed_1.
        repeats: of speed_1.
        new_tokens: most that a text is continued by; it may end before.
        at_once: requests of speed_8.
        most_drafted: tokens of a draft at most.
        samples: texts drawn at T = 1 for each of ``sampled_prompts``, with drafts and without.
        sampled_prompts: beginnings of texts that are continued so.
        sampled_at_once: texts of an engine that drafts; of more at once a student drafts less.
        sampled_tokens: tokens of each that are compared.
        permutations: of the two-sample test.
        passes: of each length that are timed.
        checkpoints: published while texts are written, for swaps.
        is_compiled: vLLM compiles the model, as it does by default; that takes most of its start.
    """

    per_domain: int = 64
    single_per_domain: int = 8
    repeats: int = 3
    new_tokens: int = 128
    at_once: int = 8
    most_drafted: int = 8
    samples: int = 512
    sampled_prompts: int = 4
    sampled_at_once: int = 4
    sampled_tokens: int = 8
    permutations: int = 2000
    passes: int = 60
    checkpoints: int = 20
    is_compiled: bool = True


# A look whether everything works: figures that are worth nothing, in about two minutes a method.
QUICK = DrafterPlan(
    per_domain=2,
    single_per_domain=1,
    repeats=1,
    new_tokens=16,
    samples=16,
    sampled_prompts=2,
    permutations=200,
    passes=4,
    checkpoints=8,
    is_compiled=False,
)
