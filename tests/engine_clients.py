"""Who asks an engine in tests."""

from dataclasses import dataclass, field

from latentforge.model.engine.engine import Engine
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.model.engine.ticket import EngineEvent, Ticket


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Client:
    """Submits to an engine and keeps what it is told."""

    engine: Engine
    events: list[EngineEvent] = field(default_factory=list)

    def ask(self, request: GenerationRequest | ScoringRequest, seconds: float | None = None) -> "Client":
        """Submits; another client has the events."""
        asked = Client(self.engine)
        asked.ticket = self.engine.submit(request, asked.events.append, seconds)
        return asked

    ticket: Ticket = field(init=False)

    @property
    def token_ids(self) -> list[int]:
        return [i for event in self.events if isinstance(event, Written) for i in event.token_ids]

    @property
    def ended(self) -> str | None:
        """Why its text ended, or what it failed with; None while more comes."""
        last = self.events[-1] if self.events else None
        if isinstance(last, Written):
            return last.finish_reason
        return None if last is None else type(last).__name__
