"""A greedy draft while it is made: what is known of a chunk, what comes next, and when it ends."""

import math

from latentforge.model.decoding.batch import Draft, DraftRequest
from latentforge.model.decoding.texts import SlotText


class GreedyDraft:
    """A text's draft; places count from the beginning of the chunk that is computed.

    Attributes:
        text: whose.
        drafted: what there is of it.
        is_over: whether it has come to its end.
    """

    def __init__(self, text: SlotText, request: DraftRequest, chunk_size: int) -> None:
        """
        Raises:
            ValueError: what is begun is a whole chunk or more.
        """
        if len(request.begun) >= chunk_size:
            raise ValueError(f"{len(request.begun)} ids are begun; whole chunks of {chunk_size} go to extend()")
        self.text, self._chunk_size = text, chunk_size
        self.drafted = Draft([], [])
        self._begun = list(request.begun)
        self._most = min(request.most, text.room - len(self._begun))
        self._least = request.least
        self._product = 1.0
        # Ids of all chunks from the first one on: what is begun, then the draft.
        self._first = 0
        self.is_over = self._most < 1

    def wants(self, place: int) -> bool:
        """Whether the token at a place is to be drafted."""
        return not self.is_over and self._first + place >= len(self._begun)

    def offer(self, place: int, token_id: int, logprob: float) -> None:
        """The likeliest token at a place, which is taken where it is wanted and likely enough."""
        if not self.wants(place):
            return
        probability = math.exp(logprob)
        self._product *= probability
        # So that a NaN ends it, too.
        if not self._product >= self._least:
            self.is_over = True
            return
        self.drafted.token_ids.append(token_id)
        self.drafted.probabilities.append(probability)
        self.is_over = len(self.drafted.token_ids) == self._most

    def at(self, place: int) -> int:
        """The id at a place; any behind the draft's end."""
        at = self._first + place
        if at < len(self._begun):
            return self._begun[at]
        drafted = self.drafted.token_ids
        return drafted[at - len(self._begun)] if at - len(self._begun) < len(drafted) else 0

    def next_chunk(self) -> list[int]:
        """The ids of the chunk that is computed; from now on places count from the beginning of the next one."""
        ids = [self.at(place) for place in range(self._chunk_size)]
        self._first += self._chunk_size
        return ids
