"""What became of drafts: a text is recognised by its ids, since rows are permuted and reused between steps."""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Ids of a text, int32 [length].
TextIds = NDArray[np.int32]


@dataclass(frozen=True)
class Verified:
    """A draft that the teacher has read.

    Attributes:
        version: whose draft it is; None of one that was looked up, or that nobody was asked for.
        num_drafted: its length; 0 for a text that got none.
        num_accepted: tokens of it that the teacher took.
        num_texts: that were drafted for in the same step.
    """

    version: Hashable | None
    num_drafted: int
    num_accepted: int
    num_texts: int


class PendingDrafts:
    """Drafts of the last step, which the next one says the fate of.

    Texts that say the same get the same draft and are not told apart.
    """

    def __init__(self) -> None:
        self._drafts: dict[bytes, tuple[Hashable | None, list[int]]] = {}
        self._num_texts = 0

    def replace(
        self, versions: Sequence[Hashable | None], texts: Sequence[TextIds], drafts: Sequence[list[int]]
    ) -> None:
        """Forgets what was pending, of texts that ended or were put off, and remembers this step's, and whose it is."""
        self._num_texts = len(texts)
        whose = zip(versions, drafts, strict=True)
        self._drafts = {_key(text): draft for text, draft in zip(texts, whose, strict=True)}

    def verify(self, text: TextIds, num_new: int) -> Verified | None:
        """What became of the draft that a text got before its newest tokens; None where it was offered none.

        Args:
            text: the whole text.
            num_new: its newest tokens, those taken of the draft and one that the teacher drew behind them.
        """
        found = self._drafts.get(_key(text[: len(text) - num_new]))
        if found is None:
            return None
        version, draft = found
        # The last one is the teacher's own, even where the draft went on alike: vLLM had cut it there.
        taken = text[len(text) - num_new :][: num_new - 1].tolist()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(taken, draft, strict=False))
        return Verified(version, len(draft), sum(1 for _ in same), self._num_texts)


def _key(text: TextIds) -> bytes:
    return blake2b(text.tobytes(), digest_size=16).digest()
