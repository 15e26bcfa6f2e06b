"""What a teacher's passes say: tokens that each gave, where drafts were accepted, what both cost, what would pay."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self


@dataclass(frozen=True)
class Pass:
    """One pass of the teacher over all running requests.

    Attributes:
        began: seconds on a clock of that engine's.
        seconds: of the teacher alone: input, forward and sampling.
        draft_seconds: of drafting behind it.
        requests: of each the tokens of its draft that were read, None where a prompt was, and the tokens given.
    """

    began: float
    seconds: float
    draft_seconds: float
    requests: tuple[tuple[int | None, int], ...]

    @classmethod
    def of(cls, noted: Sequence[Any]) -> Self:
        """One that ``pass_recorder`` noted."""
        began, seconds, draft_seconds, requests = noted
        return cls(began, seconds, draft_seconds, tuple((drafted, written) for drafted, written in requests))

    @property
    def tokens_each(self) -> int | None:
        """Tokens that every request was read by; None where they differ, or a prompt was among them."""
        read = {None if drafted is None else drafted + 1 for drafted, _ in self.requests}
        return read.pop() if len(read) == 1 else None


@dataclass(frozen=True)
class DraftAcceptance:
    """How drafts fared.

    Attributes:
        passes: of a request behind its prompt, each counted for itself.
        tokens: that these gave, as far as they are in the text.
        drafted: by position in the draft: how often there was a token.
        reached: how often there was one whose predecessors in the draft were all accepted.
        accepted: how often that one was accepted too.
    """

    passes: int
    tokens: int
    drafted: tuple[int, ...]
    reached: tuple[int, ...]
    accepted: tuple[int, ...]

    @property
    def tokens_per_pass(self) -> float:
        """The bonus token included: 1 without drafts."""
        return self.tokens / self.passes if self.passes else 1.0

    @property
    def by_position(self) -> list[float | None]:
        """Of the tokens that were reached, the accepted share; None where none was."""
        return [a / r if r else None for a, r in zip(self.accepted, self.reached, strict=True)]


def acceptance(passes: Iterable[Pass], texts: Iterable[Sequence[int]], most_drafted: int) -> DraftAcceptance:
    """What became of the drafts for ``texts``.

    Args:
        passes: all by which they were written.
        texts: ids of each as it was answered; what a last pass gave beyond its end is in none and does not count.
        most_drafted: tokens of a draft at most.
    """
    read = [
        (drafted, written) for one in passes for drafted, written in one.requests if drafted is not None and written
    ]
    # A text's first token is given by the pass that reads its prompt.
    tokens = sum(len(ids) - 1 for ids in texts if ids)
    return DraftAcceptance(
        len(read),
        tokens,
        tuple(sum(drafted > place for drafted, _ in read) for place in range(most_drafted)),
        tuple(sum(drafted > place <= written - 1 for drafted, written in read) for place in range(most_drafted)),
        tuple(sum(written - 1 > place for _, written in read) for place in range(most_drafted)),
    )


def seconds_by_length(passes: Iterable[Pass], at_once: int) -> dict[int, list[float]]:
    """Seconds of the passes over ``at_once`` requests, by the tokens that each request was read by."""
    found: dict[int, list[float]] = {}
    for one in passes:
        if len(one.requests) == at_once and one.tokens_each is not None:
            found.setdefault(one.tokens_each, []).append(one.seconds)
    return dict(sorted(found.items()))


def step_seconds(passes: Sequence[Pass], at_once: int) -> list[float]:
    """Seconds from one pass to the next, scheduling and messages included and drafting not; over ``at_once`` requests
    that were all read by one token.
    """
    return [
        after.began - one.began - one.draft_seconds
        for one, after in pairwise(passes)
        if len(one.requests) == len(after.requests) == at_once and one.tokens_each == after.tokens_each == 1
    ]


def draft_cost(passes: Iterable[Pass], plain_seconds: float, at_once: int) -> float | None:
    """Mean time to draft behind a pass over ``at_once`` texts, over a pass without drafts; None without such a pass."""
    took = [
        one.draft_seconds
        for one in passes
        if len(one.requests) == at_once and all(drafted is not None for drafted, _ in one.requests)
    ]
    return statistics.fmean(took) / plain_seconds if took else None


def tokens_needed(gain: float, plain_seconds: float, pass_seconds: float, draft_seconds: float) -> float:
    """Tokens that a pass with a draft must give so that text comes ``gain`` times as fast as without."""
    return gain * (pass_seconds + draft_seconds) / plain_seconds


def acceptance_needed(tokens: float, drafted: int) -> float | None:
    """The acceptance, the same at every position, at which a draft gives so many tokens a pass; None if none does.

    Of ``drafted`` tokens and the bonus a pass gives Σ a^i for i = 0 … drafted.
    """
    if not 1 <= tokens <= drafted + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(drafted + 1)) < tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2
