"""Bounds of a request that its schema cannot tell."""

from latentforge.inference.rest.prompts import PromptError
from latentforge.inference.settings import InferenceSettings
from latentforge.snapshots.snapshot import Snapshot


def check_choices(settings: InferenceSettings, num_prompts: int, n: int, *, writes: bool = True) -> None:
    """Raises PromptError where a request asks for more texts than one may, or than an idle server has room for.

    Args:
        writes: the texts are written, so that each needs a slot or a place in the queue.
    """
    most, bound = settings.inference_max_choices, "INFERENCE_MAX_CHOICES"
    # The engine admits all or none: told to try again, a client with more would do so for ever.
    if writes and (room := settings.inference_slots + settings.inference_queue_limit) < most:
        most, bound = room, "INFERENCE_SLOTS and INFERENCE_QUEUE_LIMIT together"
    if num_prompts * n > most:
        raise PromptError(
            "n" if num_prompts == 1 else "prompt",
            f"{num_prompts} prompts with n={n} ask for {num_prompts * n} texts, but one request may have {most} "
            f"({bound}); send several requests",
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
