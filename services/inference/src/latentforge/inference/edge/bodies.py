"""How many bytes a request's body may have."""

from collections.abc import Callable
from dataclasses import dataclass

from latentforge.core.http.bodies import SMALL_BYTES

# Below this a body is read whatever its prompt may have.
_LEAST_LIMIT_BYTES = 2**20
# Those whose body holds a single text, which must fit the context.
_ONE_PROMPT = {"/generate", "/v1/chat/completions"}
# JSON writes a character of one byte with up to six, as \u0041.
_MOST_JSON_BYTES = 6


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of a body.

    Attributes:
        max_bytes: of any.
        seconds: until it is there whole.
        longest_prompt: bytes of the longest prompt that what is served takes; None where nothing is.
    """

    max_bytes: int
    seconds: float
    longest_prompt: Callable[[], int | None] = lambda: None

    def of(self, path: str) -> int:
        """Bytes that the body of a request to ``path`` may have."""
        longest = self.longest_prompt() if path in _ONE_PROMPT else None
        if longest is None:
            return self.max_bytes
        return min(self.max_bytes, max(_LEAST_LIMIT_BYTES, _MOST_JSON_BYTES * longest + SMALL_BYTES))
