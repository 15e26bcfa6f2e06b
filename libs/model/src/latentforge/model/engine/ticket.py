"""A request's place in an engine."""

from collections.abc import Callable

from latentforge.model.decoding.batch import TextLogprobs
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.model.engine.timings import Timings

# A generation is told Written after every step, one with a finish_reason at last; a scoring TextLogprobs; each instead
# an exception where it fails. After the last one nothing more comes. Called in the loop's thread.
EngineEvent = Written | TextLogprobs | Exception
Listener = Callable[[EngineEvent], None]


class Ticket:
    """What :meth:`latentforge.model.engine.engine.Engine.submit` gives.

    Attributes:
        request: what was submitted.
        deadline: of the engine's clock.
        seconds: how long it may take.
        timings: complete when the last event is told.
        is_over: no more events come.
    """

    def __init__(
        self,
        request: GenerationRequest | ScoringRequest,
        listener: Listener,
        submitted: float,
        seconds: float,
        cancel: Callable[["Ticket"], None],
    ) -> None:
        self.request = request
        self.deadline = submitted + seconds
        self.seconds = seconds
        self.timings = Timings(submitted)
        self.is_over = False
        self._listener = listener
        self._cancel = cancel

    @property
    def num_tokens(self) -> int:
        """What it may come to: its prompt and all that it asks for."""
        request = self.request
        if isinstance(request, ScoringRequest):
            return len(request.token_ids)
        return len(request.prompt_ids) + request.max_tokens

    def cancel(self) -> None:
        """Ends the request within a step, from any thread; its listener is told GenerationCancelledError."""
        if not self.is_over:
            self._cancel(self)

    def tell(self, event: EngineEvent) -> None:
        """For the engine: passes an event on."""
        self._listener(event)

    def forget_listener(self) -> None:
        """For the engine: what listens may hold the ticket, and so its model's memory until such rings are found."""
        self._listener = _nobody


def _nobody(event: EngineEvent) -> None:
    pass
