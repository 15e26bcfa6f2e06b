"""Where two engines' texts part, and whether the teacher itself was of two minds there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Nats by which two ways to compute the same logits differ: bfloat16 has 8 bits, so that near 16 its numbers are 1/8
# apart, and a logit is the sum of many roundings; in float32 they are 2¹⁶ times as close.
TIE_NATS = {"bfloat16": 0.25, "float32": 0.001}
Kind = Literal["tie", "other"]


@dataclass(frozen=True)
class Difference:
    """The first token in which a text differs from the one written without drafts.

    Attributes:
        prompt: its number.
        position: of the token in what was written.
        plain, drafted: the token without drafts, and with; None where the text had ended.
        top: the likeliest tokens there by the teacher alone, with their log-probabilities; none before
            :func:`judged`.
        gap: nats from the likeliest of all to the less likely of the two tokens, where ``top`` has both.
        kind: a tie where that is within rounding.
    """

    prompt: int
    position: int
    plain: int | None
    drafted: int | None
    top: tuple[tuple[int, float], ...] = ()
    gap: float | None = None
    kind: Kind = "other"


def first_difference(plain: Sequence[int], drafted: Sequence[int]) -> int | None:
    """Place of the first token that only one of the two has; None where they are equal."""
    for place, (one, other) in enumerate(zip(plain, drafted, strict=False)):
        if one != other:
            return place
    return None if len(plain) == len(drafted) else min(len(plain), len(drafted))


def differences(plain: Sequence[Sequence[int]], drafted: Sequence[Sequence[int]]) -> list[Difference]:
    """One for each text that is not the same, not judged yet."""
    found = []
    for number, (one, other) in enumerate(zip(plain, drafted, strict=True)):
        place = first_difference(one, other)
        if place is not None:
            ours, theirs = ((ids[place] if place < len(ids) else None) for ids in (one, other))
            found.append(Difference(number, place, ours, theirs))
    return found


def judged(difference: Difference, top: Sequence[Sequence[Any]], dtype: str) -> Difference:
    """The same with what the teacher alone finds likeliest at that place.

    Args:
        top: [token, log-probability] of the likeliest; more than two, since three can be equal.
        dtype: that it computes in.
    """
    pairs = tuple((int(token), float(logprob)) for token, logprob in top)
    gap = None
    kind: Kind = "other"
    known = dict(pairs)
    if difference.plain in known and difference.drafted in known:
        gap = max(known.values()) - min(known[difference.plain], known[difference.drafted])
        kind = "tie" if gap <= TIE_NATS[dtype] else "other"
    return Difference(difference.prompt, difference.position, difference.plain, difference.drafted, pairs, gap, kind)
