"""What is queued for the backend, and whose turn it is."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from latentforge.gateway.scoring.callers import Caller
from latentforge.gateway.scoring.inflight import InFlightSequence

# Of all who wait, those that are queued longest: among these the ones of like length are looked for.
_CHOSEN_FROM = 512
# So often a caller's oldest sequence lets others of his pass that fit a batch better.
_PASSED_OVER = 256


@dataclass(eq=False)
class _Line:
    """What waits for one caller, oldest first.

    ``served`` are the tokens that he was given, over his share. A value of ``sequences`` is when it was queued.
    """

    caller: Caller
    served: float
    sequences: dict[InFlightSequence, int] = field(default_factory=dict)
    tokens: int = 0
    passed_over: int = 0

    @property
    def oldest(self) -> tuple[InFlightSequence, int]:
        return next(iter(self.sequences.items()))


class FairQueue:
    """Sequences that are queued for the backend, with turns between callers; at most ``max_tokens`` of tokens.

    Turns go by what was served, as in the Virtual Token Counter of "Fairness in Serving Large Language Models" (Sheng
    et al., OSDI 2024, algorithm 2), which is start-time fair queueing (Goyal et al., SIGCOMM 1996) over tokens. A
    caller's counter grows by the tokens of each sequence that is taken for him, divided by his share, and the next
    place of a batch is his whose counter is least. So two callers who both have work waiting get tokens in proportion
    to their shares, however many sequences each has queued, and somebody who asks for little waits for no more than
    the batch that is being computed. Who comes, or comes back, starts at the least counter of those who wait, unless
    his own is higher: idling earns nothing, and leaving pays nothing back.

    A sequence that several callers wait for stands in each of their lines and is charged to the one whose turn it is.

    When the queue is full, whoever has most waiting for his share gives way (longest queue drop: Suter et al., INFOCOM
    1998): his newest sequences are refused, not those of a caller with less. One sequence alone may be longer than
    ``max_tokens``.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._lines: dict[str, _Line] = {}
        # Of callers who have nothing queued: their counters, where these are above the least of those who have.
        self._left: dict[str, float] = {}
        self._least = 0.0
        self._arrivals = 0
        self._queued: set[InFlightSequence] = set()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def callers(self) -> int:
        """Who have something queued."""
        return len(self._lines)

    def room_for(self, caller: Caller, tokens: int) -> list[InFlightSequence] | None:
        """What has to leave so that so many tokens of ``caller`` fit; None if it is he who has to wait."""
        too_many = self.tokens + tokens - self._max_tokens
        if too_many <= 0 or not self._queued:
            return []
        return self._giving_way(caller, [line.tokens for line in self._lines.values()], tokens, too_many, lengths=True)

    def place_for(self, caller: Caller) -> InFlightSequence | None:
        """What has to leave so that one more sequence of ``caller`` has a place; None if it is he who has to wait."""
        counts = [len(line.sequences) for line in self._lines.values()]
        leaving = self._giving_way(caller, counts, 1, 1, lengths=False)
        return leaving[0] if leaving else None

    def add(self, sequence: InFlightSequence) -> None:
        """At the end of the lines of all who wait for it."""
        self._queued.add(sequence)
        self.tokens += len(sequence.token_ids)
        for caller in sequence.callers.values():
            self._enter(sequence, caller)

    def join(self, sequence: InFlightSequence, caller: Caller) -> None:
        """``caller`` waits for it too: it comes when his turn comes, if that is earlier."""
        if sequence in self._queued:
            self._enter(sequence, caller)

    def leave(self, sequence: InFlightSequence, caller: Caller) -> None:
        """``caller`` does not wait for it any more."""
        line = self._lines.get(caller.name)
        if line is None or line.sequences.pop(sequence, None) is None:
            return
        line.tokens -= len(sequence.token_ids)
        if not line.sequences:
            del self._lines[caller.name]
            self._left[caller.name] = line.served

    def remove(self, sequence: InFlightSequence) -> None:
        """Without a charge: nobody waits for it any more, or it gave way."""
        if sequence not in self._queued:
            return
        self._queued.remove(sequence)
        self.tokens -= len(sequence.token_ids)
        for caller in sequence.callers.values():
            self.leave(sequence, caller)

    def next_batch(self, max_batch_tokens: int) -> list[InFlightSequence]:
        """Takes as many sequences as one forward pass takes, by turns; empty if nothing is queued.

        The first place is for the oldest sequence of him whose turn it is. Every further turn gives that caller's
        sequence which is nearest to the first in length: a forward pass costs its longest sequence times their number,
        since the others are padded to it, and twenty of 50 tokens beside one of 1,000 are 21,000 positions for 2,000
        tokens. A caller whose nearest does not fit is left out of this batch, which brings him nearer to the first
        place of the next.
        """
        if not self._lines:
            return []
        self._least = min(line.served for line in self._lines.values())
        self._left = {name: served for name, served in self._left.items() if served > self._least}
        turns = [(line.served, line.oldest[1], line) for line in self._lines.values()]
        heapq.heapify(turns)
        size = len(turns[0][2].oldest[0].token_ids)
        candidates: dict[_Line, Iterator[InFlightSequence]] = {}
        among = max(1, _CHOSEN_FROM // len(turns))
        batch: list[InFlightSequence] = []
        longest = 0
        while turns:
            _, _, line = heapq.heappop(turns)
            if not line.sequences:
                # All that he waited for was taken meanwhile for others who wait for it too.
                continue
            if line not in candidates:
                candidates[line] = _nearest(line, size, among, oldest_only=line.passed_over >= _PASSED_OVER)
            # Taken meanwhile for another who waits for it too?
            chosen = next((s for s in candidates[line] if s in self._queued), None)
            if chosen is None:
                continue
            longest = max(longest, len(chosen.token_ids))
            if batch and longest * (len(batch) + 1) > max_batch_tokens:
                longest = max(len(s.token_ids) for s in batch)
                continue
            line.passed_over = 0 if chosen is line.oldest[0] else line.passed_over + 1
            line.served += len(chosen.token_ids) / line.caller.share
            batch.append(chosen)
            self.remove(chosen)
            if line.sequences:
                heapq.heappush(turns, (line.served, line.oldest[1], line))
        if not self._lines:
            # Nobody waits, so nobody is behind: all begin alike.
            self._least = max((*self._left.values(), self._least))
            self._left.clear()
        return batch

    def _enter(self, sequence: InFlightSequence, caller: Caller) -> None:
        line = self._lines.get(caller.name)
        if line is None:
            served = max(self._left.pop(caller.name, 0.0), self._floor())
            line = self._lines[caller.name] = _Line(caller, served)
        if sequence not in line.sequences:
            self._arrivals += 1
            line.sequences[sequence] = self._arrivals
            line.tokens += len(sequence.token_ids)

    def _floor(self) -> float:
        return min((line.served for line in self._lines.values()), default=self._least)

    def _giving_way(
        self, caller: Caller, sizes: Sequence[int], wanted: int, too_many: int, *, lengths: bool
    ) -> list[InFlightSequence] | None:
        """The newest sequences of the longest line, ``too_many`` in tokens or in number.

        Args:
            sizes: of the lines, in their order.
            wanted: what ``caller`` wants to add to his own.
            lengths: sizes are tokens, not sequences.
        """
        if not self._lines:
            return None
        weighed = [(size / line.caller.share, line) for size, line in zip(sizes, self._lines.values(), strict=True)]
        longest, line = max(weighed, key=lambda entry: entry[0])
        own = next((weight for weight, other in weighed if other.caller.name == caller.name), 0.0)
        if line.caller.name == caller.name or own + wanted / caller.share >= longest:
            return None
        leaving: list[InFlightSequence] = []
        for sequence in reversed(line.sequences):
            if too_many <= 0:
                break
            # One that another waits for too is his as well.
            if len(sequence.callers) == 1:
                leaving.append(sequence)
                too_many -= len(sequence.token_ids) if lengths else 1
        return leaving if too_many <= 0 else None


def _nearest(line: _Line, size: int, among: int, *, oldest_only: bool) -> Iterator[InFlightSequence]:
    """Of the oldest ``among`` those nearest to ``size`` in length, first."""
    if oldest_only:
        return iter([line.oldest[0]])
    return iter(sorted(islice(line.sequences, among), key=lambda s: abs(len(s.token_ids) - size)))
