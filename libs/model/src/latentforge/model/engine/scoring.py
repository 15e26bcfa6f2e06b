"""Texts that are scored in turns, a bounded piece of work at a time."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from latentforge.model.decoding.batch import TextLogprobs
from latentforge.model.engine.requests import ScoringRequest
from latentforge.model.engine.ticket import Ticket


@dataclass(eq=False)
class RunningScore:
    """A scoring that has begun."""

    ticket: Ticket
    pieces: Generator[None, None, TextLogprobs]


class ScoringTurns:
    """Advances one text by one piece a turn, so that a short one does not wait for the whole of a long one.

    Attributes:
        running: those that have begun, the next one first.
    """

    def __init__(self) -> None:
        self.running: deque[RunningScore] = deque()

    def start(self, ticket: Ticket, request: ScoringRequest) -> None:
        self.running.append(RunningScore(ticket, request.decoding.score(request.token_ids, request.likeliest)))

    def advance(self) -> TextLogprobs | None:
        """Does the next text's next piece and puts it behind the others; gives its result at its end."""
        score = self.running.popleft()
        try:
            next(score.pieces)
        except StopIteration as end:
            result: TextLogprobs = end.value
            return result
        self.running.append(score)
        return None

    def close(self, ticket: Ticket) -> None:
        """Ends a text early."""
        score = next(score for score in self.running if score.ticket is ticket)
        self.running.remove(score)
        score.pieces.close()
