"""What an engine tells whoever counts what it does."""

from typing import Literal

from latentforge.model.engine.requests import GenerationRequest, ScoringRequest
from latentforge.model.engine.timings import Timings

Outcome = Literal["stop", "length", "scored", "cancelled", "deadline", "failed"]


class EngineObserver:
    """Called in the loop's thread, after the fact; override what is of interest, and be quick."""

    def on_prefill(self, num_tokens: int) -> None:
        """Tokens of prompts were read."""

    def on_step(self, batch_size: int, num_tokens: int) -> None:
        """One decoding stepped: so many texts, which kept so many of the tokens."""

    def on_end(self, request: GenerationRequest | ScoringRequest, outcome: Outcome, timings: Timings) -> None:
        """A request that was admitted to the queue has ended."""
