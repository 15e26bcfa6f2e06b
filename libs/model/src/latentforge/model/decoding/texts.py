"""Texts that are written, and their slots."""

from dataclasses import dataclass

from latentforge.model.decoding.batch import OpenText
from latentforge.model.sampling import TextSampling


@dataclass(eq=False)
class SlotText(OpenText):
    """A text with its slot.

    Attributes:
        slot: where its memory is; others' closing may move it.
        ids: of whole chunks, pads on the left of the first.
        num_read: tokens of it that are in memory.
        logprobs: None for none; else so many of the likeliest ids are wanted beside each token's own.
        sampling: how its tokens are drawn.
    """

    slot: int
    ids: list[int]
    logprobs: int | None
    sampling: TextSampling
    num_read: int = 0
