"""Bounds of a request that its schema cannot tell."""

from latentforge.inference.checkpoints.snapshot import Snapshot
from latentforge.inference.rest.prompts import PromptError


def check_choices(num_prompts: int, n: int, most: int) -> None:
    """Raises PromptError where a request asks for more texts than one may."""
    if num_prompts * n > most:
        raise PromptError(
            "n" if num_prompts == 1 else "prompt",
            f"{num_prompts} prompts with n={n} ask for {num_prompts * n} texts, but one request may have {most} "
            "(INFERENCE_MAX_CHOICES); send several requests",
            code="too_many_choices",
        )


def check_exact(snapshot: Snapshot, name: str) -> None:
    """Raises PromptError where the model has no exact likelihood."""
    if not snapshot.has_likelihood:
        raise PromptError(
            name,
            f"{name} are asked for, but {snapshot.id} has an energy head, whose likelihood can only be bounded; leave "
            "them out, or measure it with trainer evaluate",
            code="no_exact_likelihood",
        )
