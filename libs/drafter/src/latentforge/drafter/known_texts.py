"""Which text is which: a serving engine's rows are permuted and used again, so a text is known by its ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latentforge.drafter.lookup import Match, TextIndex
from latentforge.model.decoding.batch import OpenText

TokenIds = NDArray[np.int64]


@dataclass(eq=False)
class KnownText:
    """A text with a slot.

    Attributes:
        text: what the decoding calls it.
        ids: all of its ids when it was last seen, int64 [L].
        num_given: how many of them the decoding was given: whole chunks, the first with its pads.
        num_drafted: tokens that were drafted behind it when it was last seen.
        seen: number of the call that saw it last.
        index: where which of its tokens stand.
        match: what stood behind a place like its end when it was last seen.
    """

    text: OpenText
    ids: TokenIds
    num_given: int
    num_drafted: int = 0
    seen: int = 0
    index: TextIndex = field(default_factory=TextIndex)
    match: Match | None = None

    def begins(self, ids: TokenIds) -> bool:
        """Whether a text goes on with this one."""
        length = len(self.ids)
        # The last id tells most texts apart.
        return 0 < length <= len(ids) and ids[length - 1] == self.ids[-1] and np.array_equal(ids[:length], self.ids)


def recognised(texts: Sequence[TokenIds], known: Iterable[KnownText]) -> list[KnownText | None]:
    """For each text the longest known one that it goes on with; None where there is none. No known text twice.

    Texts that are equal, as several answers to one prompt are at first, get one each, whichever.
    """
    found: list[KnownText | None] = [None] * len(texts)
    left = set(range(len(texts)))
    # The longest first, so that no text takes what only another one, longer, goes on with.
    for one in sorted(known, key=lambda one: len(one.ids), reverse=True):
        at = next((i for i in left if one.begins(texts[i])), None)
        if at is not None:
            found[at] = one
            left.remove(at)
    return found
