"""Several collections of continuations as one, so that a teacher can write more while a student learns."""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from latentforge.trainer.targets.continuation_batches import ContinuationStore
from latentforge.trainer.teacher.continuations import Continuation, Record

# Of one collection: more prompts than anybody asks.
_PROMPTS = 2**32


def joined_numbers(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The numbers that prompts of each collection have in all of them joined."""
    return [index * _PROMPTS + number for index, numbers in enumerate(prompts) for number in numbers]


class JoinedContinuations:
    """Collections one behind another; number p of collection i is prompt ``i · 2^32 + p``.

    Args:
        stores: the collections, at least one.

    Attributes:
        folder: of the first.
        num_usable, num_dropped: of all.
    """

    def __init__(self, stores: Sequence[ContinuationStore]) -> None:
        self._stores = stores
        self.folder: Path = stores[0].folder
        self.num_usable = sum(store.num_usable for store in stores)
        self.num_dropped = sum(store.num_dropped for store in stores)

    def records(self, prompts: Sequence[int]) -> list[Record]:
        """The continuations of prompts, in the prompts' order."""
        return [
            Record(index * _PROMPTS + r.prompt, r.place, r.num_prompt_ids, r.num_token_ids)
            for index, numbers in self._by_store(prompts)
            for r in self._stores[index].records(numbers)
        ]

    def read(self, record: Record) -> Continuation:
        """A continuation."""
        index, number = divmod(record.prompt, _PROMPTS)
        return self._stores[index].read(Record(number, record.place, record.num_prompt_ids, record.num_token_ids))

    def num_tokens(self) -> int:
        """Tokens of the continuations."""
        return sum(store.num_tokens() for store in self._stores)

    def digest(self, prompts: Sequence[int]) -> str:
        """Tells these continuations from others."""
        digests = [self._stores[index].digest(numbers) for index, numbers in self._by_store(prompts)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def _by_store(self, prompts: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Runs of prompts of one collection: which one, and their numbers in it."""
        runs = groupby(prompts, key=lambda prompt: prompt // _PROMPTS)
        return [(index, [prompt % _PROMPTS for prompt in run]) for index, run in runs]
