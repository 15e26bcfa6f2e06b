"""Texts that are written, and their slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

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


class StepSlots(NamedTuple):
    """The slots that a step computes, from the first text that steps to the last.

    Attributes:
        first: slot of the first.
        lengths: tokens that are read of each, n of them.
        rows: those among them that step, int64 [r], ascending.
        row_ids: the same as ints.
    """

    first: int
    lengths: Sequence[int]
    rows: Tensor
    row_ids: Sequence[int]

    @property
    def is_whole(self) -> bool:
        """Whether all of them step."""
        return len(self.row_ids) == len(self.lengths)
