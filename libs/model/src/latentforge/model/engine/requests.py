"""What the engine is asked, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from latentforge.model.decoding.batch import BatchDecoding, TokenLogprob
from latentforge.model.sampling import SamplingParams


@dataclass(frozen=True)
class GenerationRequest:
    """One text to continue, bound to one model for all of it.

    Attributes:
        decoding: of the model that writes it.
        prompt_ids: what is continued; may be none.
        max_tokens: at most so many ids are written.
        params: how they are drawn.
        end_ids: ids that end the text and are not part of it; none never ends before max_tokens.
        logprobs: None for none; else each token's log probability, and so many of the likeliest ids.
        stop: is told of the new ids of every step, in the loop's thread; a number ends the text with so many of them,
            None lets it go on.
    """

    decoding: BatchDecoding
    prompt_ids: Sequence[int]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    end_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    stop: Callable[[Sequence[int]], int | None] | None = None


@dataclass(frozen=True)
class ScoringRequest:
    """One text whose tokens' log probabilities are asked for, each behind those before it (teacher-forced).

    Attributes:
        decoding: of the model that scores it.
        token_ids: at least one.
        likeliest: for each token so many of the likeliest ids as well.
    """

    decoding: BatchDecoding
    token_ids: Sequence[int]
    likeliest: int = 0


@dataclass(frozen=True)
class Written:
    """What one step wrote for one request, cut at its end.

    Attributes:
        token_ids: new ids, without an end id; may be none.
        logprobs, likeliest: as in :class:`latentforge.model.decoding.batch.WrittenChunk`, of these ids.
        finish_reason: None while there is more to come; "stop" at an end id or where ``stop`` said so, "length" at
            max_tokens or at the end of the context.
    """

    token_ids: list[int]
    logprobs: list[float] | None = None
    likeliest: list[list[TokenLogprob]] | None = None
    finish_reason: Literal["stop", "length"] | None = None
