"""How long a request took, and for what."""

from dataclasses import dataclass


@dataclass
class Timings:
    """Of one request; filled in while it runs.

    Attributes:
        submitted, started, first_written, ended: seconds of one monotonic clock, when it was queued, got its slot,
            had its first tokens and ended; None until then.
        steps: steps of the model that wrote for it.
        num_tokens: ids that were written, or scored.
    """

    submitted: float
    started: float | None = None
    first_written: float | None = None
    ended: float | None = None
    steps: int = 0
    num_tokens: int = 0

    @property
    def queue_seconds(self) -> float:
        """From submission to its slot, or to its end where it never got one."""
        return _between(self.submitted, self.started if self.started is not None else self.ended)

    @property
    def first_token_seconds(self) -> float | None:
        """From submission to its first tokens; None where it has none."""
        return None if self.first_written is None else self.first_written - self.submitted

    @property
    def decode_seconds(self) -> float:
        """From its first tokens to its end."""
        return _between(self.first_written, self.ended)

    @property
    def running_seconds(self) -> float:
        """From its slot to its end, its prompt's reading included."""
        return _between(self.started, self.ended)


def _between(start: float | None, end: float | None) -> float:
    return 0.0 if start is None or end is None else end - start
